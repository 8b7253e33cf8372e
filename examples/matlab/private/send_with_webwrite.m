function [status, text] = send_with_webwrite(bf, method, path, body)
% HTTP status and body of one request, in MATLAB; status 0 where no answer came.
    fields = {'Accept', 'application/json'};
    if ~isempty(bf.token)
        fields(end + 1, :) = {'Authorization', ['Bearer ' bf.token]};
    end
    options = weboptions('RequestMethod', lower(method), 'MediaType', 'application/json', ...
                         'ContentType', 'text', 'Timeout', bf.request_s, 'HeaderFields', fields);
    try
        if isempty(body)
            text = webread([bf.url path], options);
        else
            text = webwrite([bf.url path], body, options);
        end
        status = 200;
    catch problem
        status = 0;
        text = problem.message;
        number = regexp(problem.identifier, 'HTTP(\d+)StatusCode', 'tokens', 'once');
        if ~isempty(number)
            status = str2double(number{1});
        end
    end
end
