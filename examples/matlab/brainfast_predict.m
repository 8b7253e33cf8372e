function response = brainfast_predict(bf, files, subject)
% BRAINFAST_PREDICT  The predicted response [B,V] to image files, in z units.
%
%   response = brainfast_predict(bf, 'cat.png');
%   response = brainfast_predict(bf, {'cat.png', 'dog.jpg'}, 'subj01');
%
% bf: from brainfast_open, or without a session
%   struct('url', 'http://127.0.0.1:8080', 'token', '', 'request_s', 30, 'patience_s', 60).
% subject: needed where the model has several.
%
% Asks file by file: the JSON of one request may take 4 MiB, which is a file of 3 MiB in base64.
    files = cellstr(files);
    request = struct();
    if nargin > 2
        request.subject = subject;
    end
    rows = cell(numel(files), 1);
    for n = 1:numel(files)
        request.images_b64 = {encoded(files{n})};
        answer = brainfast_request(bf, 'POST', '/v1/predict', jsonencode(request));
        rows{n} = row_of(answer.response);
    end
    response = vertcat(rows{:});
end

function row = row_of(response)
% The response [1,V] to one image of one subject.
    if isstruct(response)  % by subject
        names = fieldnames(response);
        if numel(names) > 1
            error('brainfast:invalid', 'subject: expected one of %s', strjoin(names', ', '));
        end
        response = response.(names{1});
    end
    row = reshape(response, 1, []);
end

function text = encoded(name)
% A file's bytes in base64.
    file = fopen(name, 'r');
    if file < 0
        error('brainfast:invalid', 'cannot read %s', name);
    end
    bytes = fread(file, Inf, '*uint8')';
    fclose(file);
    text = matlab.net.base64encode(bytes);
end
