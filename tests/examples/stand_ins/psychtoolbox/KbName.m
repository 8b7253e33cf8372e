function number = KbName(name)
    assert(strcmp(name, 'ESCAPE'));
    number = 10;
end
