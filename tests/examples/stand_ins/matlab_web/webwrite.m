function text = webwrite(url, data, options)
% As MATLAB documents it, for the tests in Octave: HTTP errors are identifiers, their body is lost.
    assert(ischar(data), 'the tests send text');
    assert(strcmp(options.ContentType, 'text'));
    bytes = uint8(data);
    if ~strcmp(options.CharacterEncoding, 'ISO-8859-1')
        bytes = unicode2native(data, 'UTF-8');
    end
    body = tempname();
    file = fopen(body, 'w');
    fwrite(file, bytes);
    fclose(file);
    answer = tempname();
    command = sprintf('curl -sS -X %s -m %g -o %s -w "%%{http_code}"', ...
                      upper(options.RequestMethod), options.Timeout, answer);
    for row = 1:rows(options.HeaderFields)
        command = sprintf('%s -H "%s: %s"', command, options.HeaderFields{row, :});
    end
    if ~isempty(bytes)
        command = sprintf('%s -H "Content-Type: %s" --data-binary @%s', command, ...
                          options.MediaType, body);
    end
    [code, said] = system([command ' "' url '" 2>&1']);
    delete(body);
    if code ~= 0
        error('MATLAB:webservices:ConnectionRefused', '%s', said);
    end
    text = '';
    if exist(answer, 'file')
        text = fileread(answer);
        delete(answer);
    end
    status = str2double(said);
    if status >= 400
        error(sprintf('MATLAB:webservices:HTTP%dStatusCodeError', status), ...
              'The server returned the status %d.', status);
    end
end
