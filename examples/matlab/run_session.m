function run_session(url, session, pictures, varargin)
% RUN_SESSION  A closed loop in Psychtoolbox: `brainfast serve` chooses every image.
%
%   run_session('http://127.0.0.1:8080', 'sub-01_run-1', 'candidates')
%   run_session(..., 'objective', 'FFA - PPA', 'trials', 100, 'soa_s', 4, 'token', token)
%
% Your GLM writes betas/0007.txt when it has trial 7: V numbers, NaN where nothing was measured;
% an empty file gives the trial up. Let it write another name and rename the file, so that nobody
% reads half of it.
%
% MATLAB does one thing at a time. So the server is asked while a fixation cross stands still, each
% request has ask_s seconds, and none begins that could end after the onset. Without an answer the
% fallback is shown, and the same number is asked for before the next image: its choice is not lost.
%
% What was shown when is in SESSION.csv: trial (-1: the fallback), image, onset. After a crash, of
% the server or of MATLAB, call it again with 'resume', true: it goes on after the last line.
%
% However it ends, it closes its session: a server keeps only so many open. The log stays.
%
% Was run in GNU Octave 7 on stand-ins for Psychtoolbox; in MATLAB it was not run.
    option = struct('objective', 'FFA - PPA', 'trials', 100, 'soa_s', 4, 'image_s', 2, ...
                    'ask_s', 0.5, 'load_s', 0.2, 'last_s', 30, 'betas', 'betas', ...
                    'fallback', 'fallback.png', 'resume', false, 'token', '');
    for k = 1:2:numel(varargin)
        option.(varargin{k}) = varargin{k + 1};
    end
    record = [session '.csv'];
    shown = [];
    if option.resume
        shown = read_record(record);
    elseif exist(record, 'file')
        error('brainfast:conflict', '%s exists: choose another session, or say resume', record);
    end
    if ~exist(pictures, 'dir')
        error('brainfast:invalid', 'pictures: expected a folder, got %s', pictures);
    end
    fallback = imread(option.fallback);
    request = struct('objective', option.objective, 'resume', option.resume);
    bf = brainfast_open(url, session, request, option.token);
    close_session = onCleanup(@() end_session(bf));
    bf.request_s = option.ask_s;
    bf.patience_s = 0;  % one try: the next image is the next try
    next = max([shown, -1]) + 1;  % number of the choice that is wanted
    told = [];  % after a crash all that is there is told again, which does no harm

    write_down(record, '');
    KbName('UnifyKeyNames');
    window = Screen('OpenWindow', max(Screen('Screens')), 128);
    close_window = onCleanup(@() Screen('CloseAll'));
    half = Screen('GetFlipInterval', window) / 2;  % so that the nearest frame is taken
    onset = cross(window) + option.soa_s;
    for k = 1:option.trials
        last = onset - option.ask_s - option.load_s;  % for a request to begin
        WaitSecs('UntilTime', last - 2 * option.ask_s);  % late, so that more betas are in
        told = tell_new(bf, option.betas, shown, told, last - option.ask_s);
        [trial, image, picture, next] = choose(bf, next, pictures, last);
        if trial < 0
            picture = fallback;
        end
        texture = Screen('MakeTexture', window, picture);
        Screen('DrawTexture', window, texture);
        moment = Screen('Flip', window, onset - half);
        write_down(record, sprintf('%d,%s,%.6f\n', trial, image, moment));
        if trial >= 0
            shown(end + 1) = trial;
        end
        cross(window, moment + option.image_s - half);
        Screen('Close', texture);
        onset = onset + option.soa_s;
        [~, ~, keys] = KbCheck();
        if keys(KbName('ESCAPE'))
            break
        end
    end
    last = GetSecs() + option.last_s;  % the last betas come after the last image
    while numel(told) < numel(shown) && GetSecs() < last
        told = tell_new(bf, option.betas, shown, told, last);
        WaitSecs('UntilTime', GetSecs() + 0.25);
    end
end

function [trial, image, picture, next] = choose(bf, next, pictures, last)
% Number, name and pixels of the image to show; -1 and 'fallback' where there is none.
    trial = -1;
    image = 'fallback';
    picture = [];
    try
        choice = brainfast_next(bf, next);
    catch problem
        complain(problem);
        if strcmp(problem.identifier, 'brainfast:not_found') && GetSecs() < last
            go_on(bf);
        end
        return
    end
    next = choice.trial + 1;
    try
        picture = imread(fullfile(pictures, choice.image));
        trial = choice.trial;
        image = choice.image;
    catch problem  % a file that is missing or broken is never measured
        complain(problem);
        give_up(bf, choice.trial);
    end
end

function told = tell_new(bf, folder, shown, told, last)
% Tell betas that have arrived; what cannot begin before `last` is told next time.
    for trial = reshape(setdiff(shown, told), 1, [])
        name = fullfile(folder, sprintf('%04d.txt', trial));
        if GetSecs() > last || ~exist(name, 'file')
            continue
        end
        betas = sscanf(fileread(name), '%f');
        try
            if isempty(betas)
                brainfast_skip(bf, trial);
            else
                brainfast_tell(bf, trial, betas);
            end
            told(end + 1) = trial;
        catch problem
            complain(problem);
            if strcmp(problem.identifier, 'brainfast:invalid')
                told(end + 1) = trial;  % the same betas will never be right
            end
            return
        end
    end
end

function give_up(bf, trial)
    try
        brainfast_skip(bf, trial);
    catch problem
        complain(problem);
    end
end

function go_on(bf)
% A server that was started anew has no session open.
    try
        brainfast_open(bf.url, bf.session, struct('resume', true), bf.token, bf.request_s);
    catch problem
        complain(problem);
    end
end

function end_session(bf)
% The run is in the log and in the record, even where this fails.
    try
        brainfast_close(bf);
    catch problem
        complain(problem);
    end
end

function moment = cross(window, when)
% The fixation cross, at a moment or at once.
    [width, height] = Screen('WindowSize', window);
    Screen('DrawLines', window, [-10 10 0 0; 0 0 -10 10], 2, 0, [width height] / 2);
    if nargin < 2
        when = 0;
    end
    moment = Screen('Flip', window, when);
end

function write_down(record, line)
% Closed after each line, so that a crash loses none.
    file = fopen(record, 'a');
    fwrite(file, line);
    fclose(file);
end

function shown = read_record(record)
% Trials that were shown before a crash; a last line that a power cut tore is dropped.
    shown = [];
    if ~exist(record, 'file')
        return
    end
    text = fileread(record);
    whole = text(1:max([0, find(text == 10, 1, 'last')]));
    if numel(whole) < numel(text)
        fprintf(2, 'run_session: %s: its last line was torn and is dropped\n', record);
        file = fopen([record '.part'], 'w');
        fwrite(file, whole);
        fclose(file);
        movefile([record '.part'], record);
    end
    if ~isempty(whole)
        rows = textscan(whole, '%d%s%f', 'Delimiter', ',');
        shown = double(rows{1}(rows{1} >= 0))';
    end
end

function complain(problem)
    fprintf(2, 'run_session: %s\n', problem.message);
end
