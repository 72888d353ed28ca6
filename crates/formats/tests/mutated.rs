//! A fuzzer that runs everywhere: artifacts changed at random and sealed again. `fuzz` goes deeper.
#![allow(clippy::unwrap_used)]

mod sample;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use formats::artifact::Artifact;
use sample::forge::{Forgery, seal};
use sample::{Filler, small};

/// Files that are tried.
const FILES: usize = 20_000;
/// What reading may allocate at most: for each byte of the file (a packed byte is five codes; a list of short strings
/// takes more than its JSON), and for the names of the largest model.
const BYTES_PER_BYTE: usize = 64;
const BYTES_OF_NAMES: usize = 8 << 20;

/// Counts what is allocated.
struct Counting;
static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is the system's allocator's own work.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        PEAK.fetch_max(NOW.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Tokens of a header that mean something, and numbers at which arithmetic ends.
const WORDS: [&str; 16] = [
    "0",
    "1",
    "3",
    "12",
    "1048576",
    "18446744073709551615",
    "-1",
    "1e308",
    "null",
    "\"row\"",
    "\"tensor\"",
    "\"bf16\"",
    "[",
    "}",
    "\"model.norm.weight\"",
    "true",
];

/// One test, alone in its process: the counter is global.
#[test]
fn nothing_that_is_read_panics_or_takes_memory_or_has_two_encodings() {
    let mut filler = Filler(7);
    let mut accepted = 0;
    for number in 0..FILES {
        let valid = filler.artifact(small().config);
        let mut forgery = Forgery::of(&valid);
        for _ in 0..filler.below(3) {
            mutate_header(&mut forgery.header, &mut filler);
        }
        let mut bytes = forgery.bytes();
        for _ in 0..filler.below(3) {
            mutate_bytes(&mut bytes, &mut filler);
        }
        if number % 8 > 0 {
            seal(&mut bytes);
        }
        PEAK.store(NOW.load(Relaxed), Relaxed);
        let before = NOW.load(Relaxed);
        let read = Artifact::from_bytes(&bytes);
        let most = BYTES_PER_BYTE * bytes.len() + BYTES_OF_NAMES;
        let took = PEAK.load(Relaxed) - before;
        assert!(took <= most, "{took} bytes for a file of {}: {read:?}", bytes.len());
        if let Ok(artifact) = read {
            accepted += 1;
            assert_eq!(artifact.to_bytes().unwrap(), bytes, "one artifact, one encoding");
        }
    }
    assert!(accepted > FILES / 20 && accepted < FILES / 2, "{accepted} of {FILES} are valid");
}

fn mutate_header(header: &mut String, filler: &mut Filler) {
    let at = filler.below(header.len());
    let (from, to) = (floor(header, at), floor(header, at + filler.below(24)));
    match filler.below(4) {
        0 => header.replace_range(from..to, ""),
        1 => header.insert_str(from, WORDS[filler.below(WORDS.len())]),
        2 => {
            let copy = header[from..to].to_owned();
            header.insert_str(to, &copy);
        }
        _ => {
            // A value becomes another one.
            let Some(begin) = header[from..].find([':', '[', ',']).map(|i| from + i + 1) else { return };
            let end = header[begin..].find([',', '}', ']']).map_or(header.len(), |i| begin + i);
            header.replace_range(begin..end, WORDS[filler.below(WORDS.len())]);
        }
    }
}

/// The character boundary at or before `at`.
fn floor(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0)
}

fn mutate_bytes(bytes: &mut Vec<u8>, filler: &mut Filler) {
    let at = filler.below(bytes.len());
    match filler.below(5) {
        0 => bytes.truncate(at.max(1)),
        1 => bytes.insert(at, filler.below(256) as u8),
        2 => bytes[at] ^= 1 << filler.below(8),
        3 => bytes.copy_within(at.., at / 2),
        _ => bytes[at] = filler.below(256) as u8,
    }
}
