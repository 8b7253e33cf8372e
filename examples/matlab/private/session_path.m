function path = session_path(bf)
% Of the session that `bf` is about.
    path = ['/v1/sessions/' bf.session];
end
