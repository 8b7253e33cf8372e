function yes = in_octave()
% Whether this is GNU Octave, whose webwrite can only send forms.
    yes = exist('OCTAVE_VERSION', 'builtin') > 0;
end
