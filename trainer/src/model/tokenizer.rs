//! Text to token ids and back.
//!
//! Owns the choice and checking of a tokenizer: `tokenizer.json` beside a Hugging Face base, or vocabulary and merges out
//! of a GGUF file. Never adds tokens at the ends of a text, truncates or pads, whatever the file asks for. **A text is
//! only text**: `<|im_end|>` in somebody's title is ten characters, not the end of an answer. Must never know a prompt.
//! Start reading at [`Tokenizer::open`].

use super::error::{Error, Result};
use super::gguf::open_content;
use super::mapped;
use super::spec::BaseSpec;
use crate::comm::contain_panic;
use crate::prompt::{Tokenize, TokenizeError};
use candle_core::quantized::gguf_file::{Content, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

/// Largest `tokenizer.json` that is read, in bytes.
pub const MAX_TOKENIZER_BYTES: u64 = 64 << 20;

/// Llama 3's pattern, as llama.cpp names it `llama-bpe`.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// llama.cpp's cascade for files whose pre-tokenizer is `default`.
const DEFAULT: [&str; 4] = [
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
];

/// A tokenizer with its base's end tokens; encoding and decoding are pure.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Tokens that mean something to the model rather than a reader, by id.
    special: BTreeMap<u32, String>,
    vocab_size: usize,
    bos: Option<u32>,
    eos: Vec<u32>,
    hash: [u8; 32],
}

impl Tokenizer {
    /// Opens the tokenizer of the base at `path` (folder or GGUF file); `spec` gives its special tokens.
    ///
    /// # Errors
    /// [`Error::Tokenizer`], [`Error::Format`] or [`Error::Io`]; [`Error::Mismatch`] when it has more tokens than the base.
    pub fn open(path: &Path, spec: &BaseSpec) -> Result<Self> {
        let (mut inner, hash) = if path.is_dir() {
            let file = path.join("tokenizer.json");
            let bytes = mapped::read_small(&file, MAX_TOKENIZER_BYTES)?;
            (from_json(&file, &bytes)?, *blake3::hash(&bytes).as_bytes())
        } else {
            from_gguf(path, &open_content(path)?)?
        };
        let vocab_size = inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        if vocab_size > spec.vocab {
            return Err(Error::Mismatch {
                path: path.to_path_buf(),
                what: "number of tokens",
                expected: format!("at most {}, the base's", spec.vocab),
                got: vocab_size.to_string(),
            });
        }
        inner.set_encode_special_tokens(true);
        let special = special(&inner, spec);
        Ok(Self { inner, special, vocab_size, bos: spec.bos, eos: spec.eos.clone(), hash })
    }

    /// Token ids of a text as a reader sees it: nothing is added at the ends, and the name of a special token is the
    /// letters it is written with.
    ///
    /// # Errors
    /// [`Error::Tokenizer`]; also when a special token is one character and the text has it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let ids = ids(&self.inner, text)?;
        let any = ids.iter().any(|id| self.special.contains_key(id));
        if any { self.encode_cut(text) } else { Ok(ids) }
    }

    /// [`Self::encode`] where the splitting of added tokens does not keep a special token's name apart: it is not marked
    /// as special, or the model takes the name as one piece. Cut inside of each name, the text is encoded in pieces.
    fn encode_cut(&self, text: &str) -> Result<Vec<u32>> {
        let named = |at: &usize| self.special.values().any(|name| text[*at..].starts_with(name));
        let boundaries = text.char_indices().map(|(at, _)| at);
        let cuts = boundaries.filter(named).filter_map(|at| {
            let first = text[at..].chars().next()?;
            Some(at + first.len_utf8())
        });
        let (mut all, mut start) = (Vec::new(), 0);
        for end in cuts.chain([text.len()]) {
            let piece = &text[start..end];
            let ids = ids(&self.inner, piece)?;
            // What is left over stands for something unknown, which is special too.
            let written = |id: &&u32| self.special.get(id).is_some_and(|n| piece.contains(n));
            if let Some(id) = ids.iter().find(written) {
                let name = &self.special[id];
                let what = format!("{name:?} in a text can only mean a special token");
                return Err(Error::Tokenizer { what });
            }
            all.extend(ids);
            start = end;
        }
        Ok(all)
    }

    /// Token ids of a text in which the names of special tokens stand for these tokens, as in a chat's markup: never for
    /// a user's words. Copies the tokenizer at each call.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn encode_markup(&self, text: &str) -> Result<Vec<u32>> {
        let mut inner = self.inner.clone();
        inner.set_encode_special_tokens(false);
        ids(&inner, text)
    }

    /// Text of token ids; special tokens are left out when `skip_special`; bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`Error::Tokenizer`], also for an id outside the vocabulary.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        if let Some(&id) = ids.iter().find(|&&id| self.inner.id_to_token(id).is_none()) {
            return Err(Error::Tokenizer { what: format!("no token has the id {id}") });
        }
        guard(|| self.inner.decode(ids, skip_special))
    }

    /// Id of one token by its exact content.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Tokens that end an answer, in rising order.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// Token that begins a text, where the base has one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Largest id + 1; the base's vocabulary may be padded beyond it.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// BLAKE3 of the file's bytes (`tokenizer.json`) or of its vocabulary, merges and settings (GGUF).
    pub fn hash(&self) -> [u8; 32] {
        self.hash
    }
}

fn ids(tokenizer: &tokenizers::Tokenizer, text: &str) -> Result<Vec<u32>> {
    Ok(guard(|| tokenizer.encode_fast(text, false))?.get_ids().to_vec())
}

/// Added tokens marked as special, and whatever ends or begins a text of this base, marked or not. A beginning that is
/// one letter is left: a config without it may mean a letter by its family's default, and it ends nothing.
fn special(tokenizer: &tokenizers::Tokenizer, spec: &BaseSpec) -> BTreeMap<u32, String> {
    let named = |id: u32| Some((id, tokenizer.id_to_token(id)?));
    let begins = spec.bos.and_then(named).filter(|(_, name)| name.chars().count() > 1);
    let ends = spec.eos.iter().copied().filter_map(named).chain(begins);
    let added = tokenizer.get_added_tokens_decoder();
    let marked = added.into_iter().filter(|(_, t)| t.special).map(|(id, t)| (id, t.content));
    marked.chain(ends).filter(|(_, name)| !name.is_empty()).collect()
}

fn guard<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    match contain_panic(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|e| Error::Tokenizer { what: e.to_string() }),
        Err(_) => {
            Err(Error::Tokenizer { what: "the tokenizer failed; its file is malformed".to_owned() })
        }
    }
}

fn from_json(path: &Path, bytes: &[u8]) -> Result<tokenizers::Tokenizer> {
    let mut inner = guard(|| tokenizers::Tokenizer::from_bytes(bytes))
        .map_err(|e| Error::format(path, e.to_string()))?;
    // A file may carry the settings of somebody's last call; they would cut texts silently.
    guard(|| inner.with_truncation(None).map(|_| ()))?;
    inner.with_padding(None);
    Ok(inner)
}

fn from_gguf(path: &Path, content: &Content) -> Result<(tokenizers::Tokenizer, [u8; 32])> {
    let metadata = Metadata { path, content };
    match metadata.text("tokenizer.ggml.model")? {
        "gpt2" => {}
        other => {
            return Err(
                metadata.bad("tokenizer.ggml.model", &format!("{other:?}; supported: gpt2"))
            );
        }
    }
    let pre = metadata.text("tokenizer.ggml.pre")?;
    let tokens = metadata.texts("tokenizer.ggml.tokens")?;
    let merges = metadata.texts("tokenizer.ggml.merges")?;
    let types = metadata.token_types(tokens.len())?;
    let mut ids = BTreeMap::new();
    for (id, token) in (0u32..).zip(&tokens) {
        if ids.insert(*token, id).is_some() {
            return Err(metadata.bad("tokenizer.ggml.tokens", &format!("{token:?} is there twice")));
        }
    }
    let pairs = split_merges(&merges, &ids).map_err(|merge| {
        metadata.bad("tokenizer.ggml.merges", &format!("{merge:?} is no merge"))
    })?;
    let vocab: Vocab = ids.iter().map(|(token, &id)| ((*token).to_owned(), id)).collect();
    // Llama 3 takes a word that is a token as it is; the other families always merge.
    let model = guard(|| {
        BPE::builder().vocab_and_merges(vocab, pairs).ignore_merges(pre == "llama-bpe").build()
    })?;
    let mut inner = tokenizers::Tokenizer::new(model);
    inner.with_pre_tokenizer(Some(pre_tokenizer(pre).ok_or_else(|| {
        let known = "smollm, gpt-2, llama-bpe, default";
        metadata.bad("tokenizer.ggml.pre", &format!("{pre:?}; supported: {known}"))
    })?));
    inner.with_decoder(Some(ByteLevelDecoder::new(false, false, false)));
    let added = tokens.iter().zip(&types).filter_map(|(token, kind)| match kind {
        // Unknown and control tokens are special, user-defined ones are text of one piece.
        2 | 3 => Some(AddedToken::from(*token, true).normalized(false)),
        4 => Some(AddedToken::from(*token, false).normalized(false)),
        _ => None,
    });
    let added: Vec<AddedToken> = added.filter(|t| !t.content.is_empty()).collect();
    guard(|| inner.add_tokens(added))?;
    let hash = hash_of(pre, &tokens, &merges, &types);
    Ok((inner, hash))
}

fn pre_tokenizer(name: &str) -> Option<PreTokenizerWrapper> {
    let byte_level = |use_regex| PreTokenizerWrapper::from(ByteLevel::new(false, true, use_regex));
    let split = |pattern: &str| {
        let pattern = SplitPattern::Regex(pattern.to_owned());
        Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
            .ok()
            .map(PreTokenizerWrapper::from)
    };
    let steps = match name {
        "smollm" => vec![Digits::new(true).into(), byte_level(true)],
        "gpt-2" => vec![byte_level(true)],
        "llama-bpe" => vec![split(LLAMA3)?, byte_level(false)],
        "default" => {
            let mut steps = DEFAULT.iter().map(|p| split(p)).collect::<Option<Vec<_>>>()?;
            steps.push(byte_level(false));
            steps
        }
        _ => return None,
    };
    Some(Sequence::new(steps).into())
}

/// Both halves and the whole must be tokens: the tokenizers crate relies on it.
fn split_merges<'a>(
    merges: &[&'a str],
    ids: &BTreeMap<&str, u32>,
) -> std::result::Result<Vec<(String, String)>, &'a str> {
    let mut seen = BTreeSet::new();
    let pair = |merge: &&'a str| {
        let (a, b) = merge.split_once(' ').ok_or(*merge)?;
        let whole = format!("{a}{b}");
        let known = [a, b, &whole].into_iter().all(|t| ids.contains_key(t));
        if known && seen.insert(*merge) { Ok((a.to_owned(), b.to_owned())) } else { Err(*merge) }
    };
    merges.iter().map(pair).collect()
}

fn hash_of(pre: &str, tokens: &[&str], merges: &[&str], types: &[i64]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("myriad 2026 gguf tokenizer");
    let mut text = |s: &str| {
        hasher.update(&(s.len() as u64).to_le_bytes()).update(s.as_bytes());
    };
    text(pre);
    tokens.iter().for_each(|t| text(t));
    merges.iter().for_each(|m| text(m));
    types.iter().for_each(|t| text(&t.to_string()));
    *hasher.finalize().as_bytes()
}

struct Metadata<'a> {
    path: &'a Path,
    content: &'a Content,
}

impl<'a> Metadata<'a> {
    fn get(&self, key: &str) -> Result<&'a Value> {
        self.content.metadata.get(key).ok_or_else(|| self.bad(key, "missing"))
    }

    fn text(&self, key: &str) -> Result<&'a str> {
        match self.get(key)? {
            Value::String(text) => Ok(text),
            _ => Err(self.bad(key, "must be text")),
        }
    }

    fn list(&self, key: &str) -> Result<&'a [Value]> {
        match self.get(key)? {
            Value::Array(list) => Ok(list),
            _ => Err(self.bad(key, "must be a list")),
        }
    }

    fn texts(&self, key: &str) -> Result<Vec<&'a str>> {
        let text = |v: &'a Value| match v {
            Value::String(text) => Ok(text.as_str()),
            _ => Err(self.bad(key, "must hold text only")),
        };
        self.list(key)?.iter().map(text).collect()
    }

    fn token_types(&self, len: usize) -> Result<Vec<i64>> {
        let key = "tokenizer.ggml.token_type";
        let number = |v: &Value| match v {
            Value::I32(n) => Ok(i64::from(*n)),
            Value::U32(n) => Ok(i64::from(*n)),
            _ => Err(self.bad(key, "must hold 32-bit numbers")),
        };
        let types: Vec<i64> = self.list(key)?.iter().map(number).collect::<Result<_>>()?;
        if types.len() == len {
            Ok(types)
        } else {
            Err(self.bad(key, "must have one entry per token"))
        }
    }

    fn bad(&self, key: &str, reason: &str) -> Error {
        Error::setting(self.path, key, reason)
    }
}
impl Tokenize for Tokenizer {
    fn encode(&self, text: &str) -> std::result::Result<Vec<u32>, TokenizeError> {
        Ok(Self::encode(self, text)?)
    }

    fn decode(&self, ids: &[u32]) -> std::result::Result<String, TokenizeError> {
        Ok(Self::decode(self, ids, true)?)
    }

    /// The first of the base's end tokens, the one its own config names.
    fn eos(&self) -> u32 {
        self.eos.first().copied().unwrap_or(0)
    }

    fn bos(&self) -> Option<u32> {
        self.bos
    }
}
