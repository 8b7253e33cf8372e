function number = KbName(name)
    persistent unified
    if strcmp(name, 'UnifyKeyNames')
        unified = true;
        return
    end
    assert(unified && strcmp(name, 'ESCAPE'));
    number = 10;
end
