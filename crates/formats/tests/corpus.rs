//! A corpus is read as it was written, across shards, and damage is noticed.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use formats::corpus;
use formats::corpus::{Corpus, CorpusError, Part, SourceInfo, Writer, WriterOptions};

const END: u32 = 1;

/// Documents of every length up to 40, in turns to three parts.
fn documents(vocab_size: u32) -> Vec<(Part, Vec<u32>)> {
    let part = |i: usize| [Part::Train, Part::Select, Part::Dev][i % 3];
    let id = |i: usize, j: usize| (i * 7919 + j * 104_729) as u32 % vocab_size;
    (0..40).map(|i| (part(i), (0..i).map(|j| id(i, j)).collect())).collect()
}

fn write(folder: &Path, vocab_size: u32, shard_tokens: u64) -> corpus::Manifest {
    let options = WriterOptions { shard_tokens, ..WriterOptions::new(vocab_size as usize, END, 7, "hash".into()) };
    let mut writer = Writer::create(folder, options).unwrap();
    for (part, ids) in documents(vocab_size) {
        writer.document(part, &ids, 3 * ids.len() as u64).unwrap();
    }
    let source = SourceInfo {
        from: "file:text".into(),
        path: None,
        sha256: None,
        revision: None,
        documents: 40,
        contaminated: 0,
    };
    let lengths: Vec<u16> = (0..vocab_size).map(|id| (id % 9) as u16).collect();
    writer.finish(&lengths, vec![source]).unwrap()
}

#[test]
fn what_is_written_is_read_across_shards() {
    for (vocab_size, width) in [(300, 2), (65_536, 2), (65_537, 4), (150_000, 4)] {
        for shard_tokens in [23, 1 << 20] {
            let folder = tempfile::tempdir().unwrap();
            let manifest = write(folder.path(), vocab_size, shard_tokens);
            assert_eq!(manifest.token_width, width);
            let corpus = Corpus::open(folder.path()).unwrap();
            assert_eq!(corpus.manifest(), &manifest);
            assert_eq!(corpus.token_bytes().unwrap()[12], 3);
            let mut wanted = BTreeMap::<Part, Vec<i64>>::new();
            for (part, ids) in documents(vocab_size) {
                let tokens = wanted.entry(part).or_default();
                tokens.extend(ids.iter().chain(&[END]).map(|&id| i64::from(id)));
            }
            for (part, wanted) in wanted {
                let info = &manifest.parts[&part];
                assert_eq!(info.tokens, wanted.len() as u64);
                assert_eq!(info.bytes, 3 * (info.tokens - info.documents));
                let own = documents(vocab_size).into_iter().filter(|(of, _)| *of == part).flat_map(|(_, ids)| ids);
                assert_eq!(info.counted_bytes, Some(own.map(|id| u64::from(id % 9)).sum()));
                assert_eq!(info.shards.len() as u64, info.tokens.div_ceil(shard_tokens));
                let tokens = corpus.part(part).unwrap();
                tokens.verify().unwrap();
                assert_eq!(tokens.len(), wanted.len() as u64);
                for start in 0..=wanted.len() {
                    for length in [0, 1, 2, 50, wanted.len()] {
                        let end = wanted.len().min(start + length);
                        let mut out = vec![-1; end - start];
                        tokens.copy(start as u64, &mut out);
                        assert_eq!(out, wanted[start..end]);
                    }
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "are wanted")]
fn reading_beyond_the_end_panics() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), 300, 16);
    let tokens = Corpus::open(folder.path()).unwrap().part(Part::Train).unwrap();
    tokens.copy(tokens.len() - 1, &mut [0; 2]);
}

#[test]
fn damage_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    write(path, 300, 64);
    let shard = path.join("train-00001.tokens");
    let whole = fs::read(&shard).unwrap();
    let corpus = Corpus::open(path).unwrap();

    let mut changed = whole.clone();
    changed[9] ^= 1;
    fs::write(&shard, changed).unwrap();
    let tokens = corpus.part(Part::Train).unwrap();
    assert!(matches!(tokens.verify(), Err(CorpusError::Damaged { path, .. }) if path == shard));
    corpus.part(Part::Select).unwrap().verify().unwrap();

    drop(tokens);
    fs::write(&shard, &whole[2..]).unwrap();
    let error = corpus.part(Part::Train).unwrap_err().to_string();
    assert!(error.contains("126 bytes; 64 tokens were written"), "{error}");

    fs::write(path.join("token_bytes.u16"), vec![1; 600]).unwrap();
    assert!(matches!(corpus.token_bytes(), Err(CorpusError::Damaged { .. })));
}

#[test]
fn only_a_finished_corpus_opens() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), 300, 64);
    assert!(matches!(
        Corpus::open(folder.path()).unwrap().part(Part::Report),
        Err(CorpusError::NoPart { part: Part::Report, .. })
    ));
    // Starting again takes the manifest away until it is finished.
    let options = WriterOptions::new(300, END, 0, String::new());
    let mut writer = Writer::create(folder.path(), options.clone()).unwrap();
    let error = Corpus::open(folder.path()).unwrap_err();
    assert!(matches!(error, CorpusError::Missing { .. }), "{error}");
    assert!(writer.document(Part::Train, &[300], 1).is_err());
    assert!(writer.finish(&[0; 299], Vec::new()).is_err());
    assert!(Writer::create(folder.path(), WriterOptions { end_token: 300, ..options }).is_err());
}

#[test]
fn part_names_round_trip() {
    for part in Part::ALL {
        assert_eq!(part.to_string().parse(), Ok(part));
    }
    assert!("test".parse::<Part>().is_err());
}
