# Completion of histfs for bash. It asks the program itself, so that it always knows what that knows.

_histfs() {
    local -a found
    local word=${COMP_WORDS[COMP_CWORD]}
    mapfile -t found < <("$1" complete --unique --cword "$COMP_CWORD" -- "${COMP_WORDS[@]}" 2>/dev/null)
    if ((${#found[@]})) && [[ ${found[-1]} == ::file:: ]]; then
        unset 'found[-1]'
        # A person who looks for a file wants to see no options.
        [[ $word == -* ]] || found=()
        mapfile -t -O "${#found[@]}" found < <(compgen -f -- "$word")
    fi
    COMPREPLY=("${found[@]}")
}

complete -o filenames -F _histfs histfs
