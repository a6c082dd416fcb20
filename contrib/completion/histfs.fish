# Completion of histfs for fish. It asks the program itself, so that it always knows what that knows.

function __histfs_complete
    set -l before (commandline --tokenize --cut-at-cursor --current-process)
    set -l word (commandline --current-token --cut-at-cursor)
    for line in (command histfs complete --unique --describe --cword (count $before) -- $before "$word" 2>/dev/null)
        switch $line
            case '::file::*'
                __fish_complete_path "$word"
            case '*'
                echo $line
        end
    end
end

complete --command histfs --no-files --arguments '(__histfs_complete)'
