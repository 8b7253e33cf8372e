function [status, text] = send_with_curl(bf, method, path, body)
% HTTP status and body of one request, by the program curl; status 0 where no answer came.
    folder = new_folder();
    cleanup = onCleanup(@() remove(folder));
    answer = fullfile(folder, 'answer');
    lines = {['url = "' bf.url path '"'], ['request = ' method], ['output = "' answer '"'], ...
             sprintf('max-time = %g', bf.request_s), 'silent', 'show-error', ...
             'write-out = "%{http_code}"', 'header = "Content-Type: application/json"', ...
             'header = "Expect:"'};
    if ~isempty(body)
        write_text(fullfile(folder, 'body'), body);
        lines{end + 1} = ['data-binary = "@' fullfile(folder, 'body') '"'];
    end
    if ~isempty(bf.token)  % in a file, because others see a program's arguments
        lines{end + 1} = ['header = "Authorization: Bearer ' bf.token '"'];
    end
    write_text(fullfile(folder, 'request'), strjoin(lines, "\n"));
    [code, said] = system(['curl --config "' fullfile(folder, 'request') '" 2>&1']);
    status = 0;
    text = strtrim(regexprep(said, '000$', ''));  % no status
    if code == 0
        status = str2double(said);
        text = fileread(answer);
    end
end

function folder = new_folder()
% A folder that this user alone can read.
    before = umask(77);
    restore = onCleanup(@() umask(before));
    folder = tempname();
    mkdir(folder);
end

function write_text(name, text)
    file = fopen(name, 'w');
    fwrite(file, text);
    fclose(file);
end

function remove(folder)
    confirm_recursive_rmdir(false, 'local');
    rmdir(folder, 's');
end
