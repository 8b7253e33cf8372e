function answer = brainfast_request(bf, method, path, body)
% One request in JSON, repeated while that can help: the line broke, or the server says "not now".
%
% Every request of these functions may be repeated without harm, see docs/serve.md.
    start = tic();
    while true
        if in_octave()
            [status, text] = send_with_curl(bf, method, path, body);
        else
            [status, text] = send_with_webwrite(bf, method, path, body);
        end
        if status >= 200 && status < 300
            break
        end
        [code, text] = what_was_said(status, text);
        passing = any(status == [0 429 503 504]) && ~strcmp(code, 'too_many');  % 0: no answer
        if ~passing || toc(start) >= bf.patience_s
            error(['brainfast:' code], '%s', text);
        end
        pause(0.1);
    end
    answer = jsondecode(text);
end

function [code, text] = what_was_said(status, text)
% The server's code and sentence, or what the system said of the line.
    codes = {400, 'invalid'; 401, 'unauthorised'; 404, 'not_found'; 409, 'conflict'; ...
             413, 'too_large'; 429, 'busy'; 503, 'unavailable'; 504, 'timed_out'; ...
             500, 'internal'; 0, 'unreachable'};
    code = 'internal';
    row = find([codes{:, 1}] == status, 1);
    if ~isempty(row)
        code = codes{row, 2};
    end
    try
        said = jsondecode(text);
        code = said.code;
        text = said.error;
    catch
        % MATLAB's webwrite keeps the server's sentence to itself: its own has to do.
    end
end
