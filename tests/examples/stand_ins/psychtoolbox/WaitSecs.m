function WaitSecs(kind, moment)
    assert(strcmp(kind, 'UntilTime'));
    pause(max(0, moment - GetSecs()));
end
