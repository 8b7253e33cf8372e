function choice = brainfast_next(bf, trial)
% BRAINFAST_NEXT  The image to show: choice number `trial` of the session, from 0.
%
%   choice = brainfast_next(bf, 0);  picture = imread(fullfile('candidates', choice.image));
%
% choice: image (id in the pool), trial, score, uncertainty, ties, source, late, latency_ms.
%
% May be repeated: the same number gives the same choice, even after a restart of the server. So
% it repeats by itself when the line breaks or the server is busy, for bf.patience_s in all. After
% that it is an error: show a picture of your own and ask for the same number next time.
    body = sprintf('{"trial": %d}', trial);
    choice = brainfast_request(bf, 'POST', [session_path(bf) '/next'], body);
end
