function brainfast_tell(bf, trial, betas, subject)
% BRAINFAST_TELL  What was measured for choice number `trial`.
%
%   brainfast_tell(bf, choice.trial, betas)
%   brainfast_tell(bf, choice.trial, betas, 'subj01')
%
% betas: [V] z-scored, in the engine's vertices and their order; NaN where nothing was measured.
% subject: whose betas these are; those of another subject are then refused.
%
% May be repeated with the same betas, late and in any order. Other betas for a trial that was
% told are refused: 'brainfast:conflict'.
    % Single precision is what the server keeps; its decimal digits do not depend on the way here.
    values = double(single(betas(:)'));
    if isscalar(values)
        values = {values};  % or JSON would have a number in place of a list
    end
    request = struct('trial', trial);
    request.betas = values;  % jsonencode writes NaN as null
    if nargin > 3
        request.subject = subject;
    end
    brainfast_request(bf, 'POST', [session_path(bf) '/tell'], jsonencode(request));
end
