function text = webread(url, options)
% As MATLAB documents it, for the tests in Octave.
    text = webwrite(url, '', options);
end
