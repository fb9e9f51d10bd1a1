//! A hash of a sequence of things, each with its length: no two sequences have the same bytes.

/// The hash under way.
#[derive(Debug)]
pub(super) struct Digest(blake3::Hasher);

impl Digest {
    /// `domain` names what is hashed; different domains never meet.
    pub(super) fn new(domain: &'static str) -> Self {
        Self(blake3::Hasher::new_derive_key(domain))
    }

    pub(super) fn number(&mut self, number: u64) {
        self.0.update(&number.to_le_bytes());
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.update(bytes);
    }

    pub(super) fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    pub(super) fn tokens(&mut self, tokens: &[u32]) {
        self.number(tokens.len() as u64);
        tokens.iter().for_each(|token| {
            self.0.update(&token.to_le_bytes());
        });
    }

    pub(super) fn finish(&self) -> [u8; 32] {
        *self.0.finalize().as_bytes()
    }

    /// The hash as a file name.
    pub(super) fn name(&self) -> String {
        self.0.finalize().to_hex().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_that_differ_only_in_their_cuts_differ() {
        let of = |texts: &[&str]| {
            let mut digest = Digest::new("test");
            texts.iter().for_each(|t| digest.text(t));
            digest.finish()
        };
        assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
        assert_ne!(of(&["ab"]), of(&["ab", ""]));
        assert_eq!(of(&["ab", "c"]), of(&["ab", "c"]));
        let tokens = |lists: &[&[u32]]| {
            let mut digest = Digest::new("test");
            lists.iter().for_each(|t| digest.tokens(t));
            digest.finish()
        };
        assert_ne!(tokens(&[&[1], &[2]]), tokens(&[&[1, 2], &[]]));
        assert_ne!(Digest::new("a").finish(), Digest::new("b").finish());
    }
}
