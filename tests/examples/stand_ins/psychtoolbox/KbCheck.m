function [down, seconds, keys] = KbCheck()
% Escape is pressed once the test has made its file.
    seconds = GetSecs();
    keys = zeros(1, 256);
    keys(KbName('ESCAPE')) = exist(getenv('BRAINFAST_TEST_STOP'), 'file') > 0;
    down = any(keys);
end
