function seconds = GetSecs()
    seconds = now() * 86400;
end
