function varargout = Screen(command, varargin)
% Stands for Psychtoolbox: writes down what was drawn; a flip waits until its time.
    persistent shown
    switch command
        case 'Screens'
            varargout = {0};
        case 'OpenWindow'
            varargout = {10};
        case 'GetFlipInterval'
            varargout = {1 / 60};
        case 'WindowSize'
            varargout = {640, 480};
        case 'MakeTexture'
            picture = varargin{2};
            varargout = {double(picture(1))};  % the tests' pictures are of one grey level each
        case {'DrawTexture', 'DrawLines'}
            shown = varargin{2}(1) * strcmp(command, 'DrawTexture') - strcmp(command, 'DrawLines');
        case 'Flip'
            if numel(varargin) > 1
                WaitSecs('UntilTime', varargin{2});
            end
            moment = GetSecs();
            file = fopen(getenv('BRAINFAST_TEST_FLIPS'), 'a');
            fprintf(file, '%d,%.6f\n', shown, moment);
            fclose(file);
            varargout = {moment};
        case {'Close', 'CloseAll'}
        otherwise
            error('no such command: %s', command);
    end
end
