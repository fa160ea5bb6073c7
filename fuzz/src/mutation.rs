//! New inputs out of old ones: bytes, numbers and words changed, pieces moved, two inputs spliced.

use fastrand::Rng;

/// Text that parsers trip over, whatever their language.
const TROUBLE: [&str; 40] = [
    "\0",
    "\r\n",
    "\n",
    "\t",
    " ",
    "..",
    "../",
    "/",
    "//",
    "\\",
    "\"",
    "'",
    "%2e%2e",
    "%2F",
    "%00",
    "%",
    ":",
    "@",
    "#",
    "?",
    "&",
    "=",
    ",",
    ";",
    "{",
    "}",
    "[",
    "]",
    "(",
    ")",
    "*",
    "~1",
    "\u{feff}",
    "\u{202e}",
    "é",
    "İ",
    "\u{1F600}",
    "-",
    "_",
    ".",
];

/// Numbers at which types end.
const NUMBERS: [&str; 22] = [
    "0",
    "1",
    "-1",
    "2",
    "00",
    "+1",
    "127",
    "128",
    "255",
    "256",
    "65535",
    "65536",
    "2147483647",
    "2147483648",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "1e309",
    "0.1",
];

/// Changes `input` a few times.
pub fn mutate(
    input: &mut Vec<u8>,
    random: &mut Rng,
    dictionary: &[&str],
    other: &[u8],
    max_bytes: usize,
) {
    // Mostly little changes; at times many.
    let most = if random.usize(..8) == 0 { 16 } else { 4 };
    let rounds = 1 + random.usize(..most);
    for _ in 0..rounds {
        once(input, random, dictionary, other);
    }
    input.truncate(max_bytes);
}

fn once(input: &mut Vec<u8>, random: &mut Rng, dictionary: &[&str], other: &[u8]) {
    let at = random.usize(..=input.len());
    match random.usize(..14) {
        0 => {
            if let Some(byte) = input.get_mut(at) {
                *byte ^= 1 << random.usize(..8);
            }
        }
        1 => {
            if let Some(byte) = input.get_mut(at) {
                *byte = random.u8(..);
            }
        }
        2 => input.insert(at, random.u8(..)),
        3 => {
            let end = (at + 1 + random.usize(..8)).min(input.len());
            input.drain(at.min(end)..end);
        }
        4 => {
            let end = (at + 1 + random.usize(..32)).min(input.len());
            let piece = input[at.min(end)..end].to_vec();
            let to = random.usize(..=input.len());
            insert(input, to, &piece);
        }
        5 => insert_one(input, at, random, &TROUBLE),
        6 => replace_number(input, at, random),
        7 | 8 => insert_one(input, at, random, dictionary),
        9 | 10 => {
            // A word where another word stands.
            let end = word_end(input, at);
            input.drain(at..end);
            insert_one(input, at, random, dictionary);
        }
        11 => {
            // The head of this input and the tail of another one.
            input.truncate(at);
            let from = random.usize(..=other.len());
            input.extend_from_slice(&other[from..]);
        }
        12 => {
            // Depth and length: one piece many times.
            let end = (at + 1 + random.usize(..6)).min(input.len());
            let piece = input[at.min(end)..end].to_vec();
            let times = 1 << random.usize(..9);
            insert(input, at, &piece.repeat(times));
        }
        _ => {
            let from = random.usize(..=other.len());
            let end = (from + 1 + random.usize(..40)).min(other.len());
            insert(input, at, &other[from.min(end)..end]);
        }
    }
}

fn insert(input: &mut Vec<u8>, at: usize, piece: &[u8]) {
    let at = at.min(input.len());
    input.splice(at..at, piece.iter().copied());
}

fn insert_one(input: &mut Vec<u8>, at: usize, random: &mut Rng, of: &[&str]) {
    if let Some(text) = random.choice(of) {
        insert(input, at, text.as_bytes());
    }
}

fn word_end(input: &[u8], at: usize) -> usize {
    let rest = input.get(at..).unwrap_or_default();
    let word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    at + rest.iter().take_while(|byte| word(byte)).count()
}

/// Puts a boundary in place of the number at or behind `at`.
fn replace_number(input: &mut Vec<u8>, at: usize, random: &mut Rng) {
    let rest = input.get(at..).unwrap_or_default();
    let Some(skip) = rest.iter().position(u8::is_ascii_digit) else {
        return insert_one(input, at, random, &NUMBERS);
    };
    let begin = at + skip;
    let digits = input[begin..]
        .iter()
        .take_while(|byte| byte.is_ascii_digit());
    let end = begin + digits.count();
    input.drain(begin..end);
    insert_one(input, begin, random, &NUMBERS);
}

/// The smallest input, found by taking pieces away, that still `fails`; gives up after `tries`.
pub fn shrink(input: &[u8], mut fails: impl FnMut(&[u8]) -> bool, tries: usize) -> Vec<u8> {
    let mut best = input.to_vec();
    let mut piece = best.len().div_ceil(2).max(1);
    let mut left = tries;
    while left > 0 {
        let mut smaller = false;
        let mut at = 0;
        while at < best.len() && left > 0 {
            let end = (at + piece).min(best.len());
            let candidate = [&best[..at], &best[end..]].concat();
            left -= 1;
            if fails(&candidate) {
                best = candidate;
                smaller = true;
            } else {
                at = end;
            }
        }
        if piece == 1 && !smaller {
            break;
        }
        if !smaller {
            piece = piece.div_ceil(2);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_is_shrunk_to_what_makes_it_fail() {
        let input = b"some text with a needle in it and more behind".repeat(5);
        let fails = |input: &[u8]| input.windows(6).any(|window| window == b"needle");
        assert_eq!(shrink(&input, fails, 10_000), b"needle");
    }

    #[test]
    fn inputs_stay_within_their_bound_and_differ() {
        let mut random = Rng::with_seed(1);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let mut input = b"abc 123".to_vec();
            mutate(&mut input, &mut random, &["word"], b"other", 40);
            assert!(input.len() <= 40);
            seen.insert(input);
        }
        assert!(seen.len() > 150, "{} of 200 differ", seen.len());
    }
}
