function about = brainfast_about(url, token)
% BRAINFAST_ABOUT  What a running `brainfast serve` answers for.
%
%   about = brainfast_about('http://127.0.0.1:8080');  about.model, about.vertices, about.rois
%
% Use it before the experiment to see that the server is there and has the right model and pool.
    if nargin < 2
        token = '';
    end
    bf = struct('url', regexprep(url, '/+$', ''), 'token', token, 'request_s', 5, 'patience_s', 5);
    about = brainfast_request(bf, 'GET', '/v1/about', '');
end
