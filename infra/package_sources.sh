# Sourced by the other scripts. uv reads none of pip's settings; this hands them over, so that
# a mirror or a folder of wheels configured for pip serves uv as well.
# shellcheck shell=bash disable=SC2034

_pip_setting() { # python, environment variable, name of the setting
    printf '%s' "${!2:-$("$1" -m pip config get "global.$3" 2>/dev/null || true)}"
}

# Options that make uv choose the CPU build of torch, for the script that sources this.
torch_source=()

use_package_sources_of_pip() { # python
    local value place
    value="$(_pip_setting "$1" PIP_INDEX_URL index-url)"
    [[ -z "$value" ]] || export UV_DEFAULT_INDEX="$value"
    value="$(_pip_setting "$1" PIP_EXTRA_INDEX_URL extra-index-url)"
    if [[ -n "$value" ]]; then
        export UV_EXTRA_INDEX_URL="$value"
        # As pip does: look into all indexes. Safe, because hashes are pinned.
        export UV_INDEX_STRATEGY=unsafe-best-match
    fi
    # The CPU build of torch is in PyTorch's own index, unless a folder given to pip has it.
    # (Our CI gives a folder, since its network ends before that index: only that way is tested.)
    torch_source=(--torch-backend cpu)
    value="$(_pip_setting "$1" PIP_FIND_LINKS find-links)"
    if [[ -n "$value" ]]; then
        # uv wants commas where pip has spaces.
        export UV_FIND_LINKS="${value//[[:space:]]/,}"
        for place in $value; do
            if compgen -G "${place#file://}/torch-*.whl" >/dev/null; then
                torch_source=()
            fi
        done
    fi
}
