function brainfast_skip(bf, trial)
% BRAINFAST_SKIP  Give up the measurement of choice number `trial`; its image may come again.
%
%   brainfast_skip(bf, choice.trial)
%
% For trials without usable betas: motion, dropped volumes. May be repeated.
    body = sprintf('{"trial": %d}', trial);
    brainfast_request(bf, 'POST', [session_path(bf) '/skip'], body);
end
