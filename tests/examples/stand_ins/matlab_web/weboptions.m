function options = weboptions(varargin)
% The options of MATLAB that the clients use, under MATLAB's names and with its defaults.
    options = struct('RequestMethod', 'auto', 'ContentType', 'auto', 'MediaType', 'auto', ...
                     'CharacterEncoding', 'auto', 'Timeout', 5, 'HeaderFields', {{}});
    for pair = reshape(varargin, 2, [])
        assert(isfield(options, pair{1}), 'no such option: %s', pair{1});
        options.(pair{1}) = pair{2};
    end
    assert(isempty(options.HeaderFields) || columns(options.HeaderFields) == 2);
end
