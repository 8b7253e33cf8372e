function bf = brainfast_open(url, session, request, token, patience_s)
% BRAINFAST_OPEN  Open a session of a running `brainfast serve`, or go on with one.
%
%   bf = brainfast_open('http://127.0.0.1:8080', 'sub-01_run-1', struct('objective', 'FFA - PPA'))
%   bf = brainfast_open(url, session, struct('objective', 'FFA - PPA', 'resume', true), token)
%
% request: fields of the session, see docs/serve.md: objective, subject, strategy, kappa, repeats,
%   seed, model_share, fallback, exclude, balance, min_distance, deadline_ms, resume.
% token: text, where the server was started with one; '' without.
% patience_s: how long to try, 20 where it is not given.
% bf: what the other functions take. bf.state tells of the session: trials, told, outstanding, ...
%   bf.request_s is the time-out of one request and bf.patience_s of all its repeats; set both
%   shorter where the screen must not wait. Close the session at its end: brainfast_close(bf).
%
% Errors have identifiers: 'brainfast:conflict' where the session exists and resume is not true.
% Was run in GNU Octave 7 with curl. MATLAB uses webread and webwrite; it was not run there.
    if nargin < 4
        token = '';
    end
    if nargin < 5
        patience_s = 20;
    end
    bf = struct('url', regexprep(url, '/+$', ''), 'session', session, 'token', token, ...
                'request_s', min(5, patience_s), 'patience_s', patience_s);
    bf.state = brainfast_request(bf, 'PUT', session_path(bf), jsonencode(request));
end
