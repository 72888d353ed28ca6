//! Anything at all is read as an artifact: it must not panic, nor take memory out of proportion, and what is accepted
//! must be, to the byte, what would be written of it.
//!
//! An input is a byte that chooses and what it chooses: even, a file without its checksum; odd, a header (the first JSON
//! value) and the content of the blobs without gaps. Lengths, gaps and the checksum are made right here, or nothing
//! would get past them.
#![no_main]

use formats::artifact::Artifact;
use libfuzzer_sys::fuzz_target;
use serde::de::IgnoredAny;
use serde_json::Value;

#[path = "../../tests/sample/forge.rs"]
#[allow(dead_code, reason = "it takes files apart, too")]
mod forge;

/// Most bytes of blobs that are made up for a header that claims more than the input has.
const MOST_CLAIMED: usize = 1 << 20;

fuzz_target!(|data: &[u8]| {
    let Some((choice, rest)) = data.split_first() else { return };
    let file = if choice % 2 == 0 {
        let mut file = [rest, &[0; forge::DIGEST_BYTES]].concat();
        forge::seal(&mut file);
        file
    } else {
        let mut values = serde_json::Deserializer::from_slice(rest).into_iter::<IgnoredAny>();
        let length = if let Some(Ok(_)) = values.next() { values.byte_offset() } else { rest.len() };
        let (header, content) = rest.split_at(length);
        let Ok(header) = str::from_utf8(header) else { return };
        let mut content = content.to_vec();
        let sizes = blob_sizes(header).unwrap_or_else(|| vec![content.len()]);
        content.resize(sizes.iter().sum(), 0);
        let mut rest = content.as_slice();
        let blobs = sizes.into_iter().map(|size| rest.split_off(..size).unwrap_or_default().to_vec()).collect();
        forge::Forgery { header: header.to_owned(), blobs }.bytes()
    };
    if let Ok(artifact) = Artifact::from_bytes(&file) {
        assert_eq!(artifact.to_bytes().expect("it was accepted"), file);
        assert!(artifact.bits_per_weight() >= 1.6, "a code takes a fifth of a byte");
        for tensor in &artifact.ternary {
            assert!(tensor.dequantize().iter().all(|weight| weight.is_finite()));
        }
    }
});

/// What a header claims for its blobs, if that is little. Written again from the format's description.
fn blob_sizes(header: &str) -> Option<Vec<usize>> {
    let header: Value = serde_json::from_str(header).ok()?;
    let product = |shape: &Value| {
        shape.as_array()?.iter().try_fold(1usize, |n, d| n.checked_mul(usize::try_from(d.as_u64()?).ok()?))
    };
    let mut sizes = Vec::new();
    for tensor in header["ternary"].as_array()? {
        let shape = &tensor["shape"];
        let (rows, columns) =
            (product(&shape.as_array()?.get(..1)?.into())?, usize::try_from(shape[1].as_u64()?).ok()?);
        let scales = match &tensor["grouping"] {
            Value::String(text) if text == "tensor" => 1,
            Value::String(_) => rows,
            width => rows.checked_mul(columns.checked_div(usize::try_from(width.as_u64()?).ok()?)?)?,
        };
        sizes.push(rows.checked_mul(columns.div_ceil(5))?);
        sizes.push(scales.checked_mul(2)?);
    }
    for tensor in header["dense"].as_array()? {
        let width = if tensor["dtype"] == "f32" { 4 } else { 2 };
        sizes.push(product(&tensor["shape"])?.checked_mul(width)?);
    }
    let total = sizes.iter().try_fold(0usize, |n, &size| n.checked_add(size))?;
    (total <= MOST_CLAIMED).then_some(sizes)
}
