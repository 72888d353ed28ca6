//! Batches cover the text once an epoch, in an order of the seed.
#![allow(clippy::unwrap_used, reason = "a test that cannot set up fails")]

mod fixture;

use fixture::Fixture;
use formats::corpus::{Corpus, Part, Tokens, Writer, WriterOptions};
use tch::Device;
use trainer::batches::Batches;

fn tokens(fixture: &Fixture) -> Tokens {
    Corpus::open(&fixture.data().join("text")).unwrap().part(Part::Train).unwrap()
}

fn ids(tensor: &tch::Tensor) -> Vec<i64> {
    Vec::try_from(tensor.reshape([-1])).unwrap()
}

#[test]
fn an_epoch_has_every_window_once() {
    // Every token is its own position: 1, 2, … 3999 and the end token.
    let folder = tempfile::tempdir().unwrap();
    let mut writer = Writer::create(folder.path(), WriterOptions::new(4000, 0, 0, "0".repeat(64))).unwrap();
    writer.document(Part::Train, &(1..4000).collect::<Vec<u32>>(), 3999).unwrap();
    writer.finish(&vec![1; 4000], Vec::new()).unwrap();
    let tokens = Corpus::open(folder.path()).unwrap().part(Part::Train).unwrap();

    let length = 41;
    let mut batches = Batches::new(tokens, 5);
    let mut starts = Vec::new();
    loop {
        let batch = batches.next(1, length, Device::Cpu).unwrap();
        if batches.epochs() == 2 {
            break;
        }
        let (inputs, targets) = (ids(&batch.inputs), ids(&batch.targets));
        assert_eq!(inputs[1..], targets[..length - 1]);
        starts.push(inputs[0] as usize - 1);
    }
    assert!(starts.windows(2).any(|pair| pair[1] < pair[0]), "they are shuffled");
    starts.sort_unstable();
    assert!(starts[0] < length && starts.windows(2).all(|pair| pair[1] - pair[0] == length), "{starts:?}");
    assert!(4000 - starts[starts.len() - 1] <= 2 * length + 1, "the end of the text is used");
}

#[test]
fn the_seed_gives_the_order() {
    let fixture = Fixture::scratch();
    let first = |seed| ids(&Batches::new(tokens(&fixture), seed).next(8, 16, Device::Cpu).unwrap().inputs);
    assert_eq!(first(1), first(1));
    assert_ne!(first(1), first(2));
}

#[test]
fn a_window_that_does_not_fit_is_an_error() {
    let fixture = Fixture::scratch();
    let error = Batches::new(tokens(&fixture), 0).next(1, 1_000_000, Device::Cpu).unwrap_err();
    assert!(error.to_string().contains("use a shorter window"), "{error}");
}
