# SPDX-License-Identifier: BSL-1.0
# To be sourced: where packages come from, as apt itself has it.

# The mirror that apt takes the system's own release from; empty when there is none.
mirror() {
    apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 'Created-By: Packages' 2>/dev/null |
        sed -n "s,/* $(. /etc/os-release && echo "${VERSION_CODENAME:-none}")\$,,p" | head -n 1
}

# mirror_has MIRROR SUITE: can apt read this suite there?
mirror_has() {
    scratch=$(mktemp -d) && chmod 755 "$scratch"
    answer=0
    /usr/lib/apt/apt-helper -qq download-file "$1/dists/$2/InRelease" "$scratch/InRelease" 2>/dev/null || answer=1
    rm -r "$scratch"
    return "$answer"
}
