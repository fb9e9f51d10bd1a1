//! Where a JSON value ends: strings and brackets, nothing else (`elements.rs` reads files with it).

/// What a chunk of a value was.
pub(super) enum Step {
    /// The value goes on.
    More,
    /// The value ends before this byte of the chunk.
    Ended(usize),
    /// The byte that closes a bracket of the other kind.
    Mismatch(usize),
}

/// How far into a value the cursor is, across chunks.
#[derive(Default)]
pub(super) struct Syntax {
    depth: u64,
    /// One bit a level, the outermost lowest: 1 is an object. Levels beyond 128 are only counted.
    kinds: u128,
    in_string: bool,
    escaped: bool,
    /// A number or word at depth 0.
    in_word: bool,
}

impl Syntax {
    /// Whether the value is a number or a word, which ends where something else begins.
    pub(super) fn is_scalar(&self) -> bool {
        self.in_word && self.depth == 0
    }

    /// Goes through the next bytes of the value.
    pub(super) fn read(&mut self, chunk: &[u8]) -> Step {
        let mut at = 0;
        while at < chunk.len() {
            if self.escaped {
                self.escaped = false;
                at += 1;
                continue;
            }
            if self.in_string {
                let Some(found) = memchr::memchr2(b'"', b'\\', &chunk[at..]) else {
                    return Step::More;
                };
                at += found + 1;
                if chunk[at - 1] == b'\\' {
                    self.escaped = true;
                    continue;
                }
                self.in_string = false;
                if self.depth == 0 {
                    return Step::Ended(at);
                }
                continue;
            }
            let byte = chunk[at];
            match byte {
                _ if self.is_scalar() && b",]}:{[\" \t\r\n".contains(&byte) => {
                    return Step::Ended(at);
                }
                b'"' => self.in_string = true,
                b'{' | b'[' => {
                    if self.depth < 128 {
                        let bit = 1 << self.depth;
                        self.kinds =
                            if byte == b'{' { self.kinds | bit } else { self.kinds & !bit };
                    }
                    self.depth += 1;
                }
                b'}' | b']' => {
                    let Some(level) = self.depth.checked_sub(1) else {
                        return Step::Mismatch(at);
                    };
                    if level < 128 && (self.kinds >> level & 1 == 1) != (byte == b'}') {
                        return Step::Mismatch(at);
                    }
                    self.depth = level;
                    if self.depth == 0 {
                        return Step::Ended(at + 1);
                    }
                }
                _ => self.in_word |= self.depth == 0,
            }
            at += 1;
        }
        Step::More
    }
}
