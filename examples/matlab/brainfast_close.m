function brainfast_close(bf)
% BRAINFAST_CLOSE  Close the session at the server, where its log stays.
%
%   brainfast_close(bf)
%
% A server keeps only so many sessions open (16, where it was not told otherwise): close each at the
% end of its run. 'resume' opens it again. May be repeated: one that is not open is closed.
    try
        brainfast_request(bf, 'DELETE', session_path(bf), '');
    catch problem
        if ~strcmp(problem.identifier, 'brainfast:not_found')
            rethrow(problem);
        end
    end
end
