# A closure of `count` paths, each with references to earlier ones, made with nothing but a shell.
# A path has a file of its own, one that it shares with others, an executable, a symbolic link, and an empty file.
{ count ? "5", salt ? "a" }:
let
  number = builtins.fromJSON count;
  half = index: index / 2;
  references = index: if index == 0 then [ ] else [ (builtins.elemAt paths (index - 1)) (builtins.elemAt paths (half index)) ];
  path = index: derivation {
    name = "part-${toString index}";
    system = builtins.currentSystem;
    builder = "/bin/sh";
    references = references index;
    inherit salt;
    index = toString index;
    args = [
      "-c"
      ''
        export PATH=/usr/bin:/bin
        echo "building part $index"
        mkdir -p $out/bin
        echo "$salt $index" > $out/own
        echo "$salt" > $out/shared
        : > $out/empty
        printf '#!/bin/sh\necho part %s\n' "$index" > $out/bin/run
        chmod +x $out/bin/run
        ln -s ../own $out/bin/link
        for reference in $references; do echo $reference; done > $out/references
      ''
    ];
  };
  paths = builtins.genList path number;
in
builtins.elemAt paths (number - 1)
