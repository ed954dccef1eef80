//! Named f32 tensors to and from the safetensors format (<https://huggingface.co/docs/safetensors>): eight bytes of
//! header length, a JSON header of names, dtypes, shapes and offsets, then the numbers in little-endian order.

use super::corrupt;
use crate::error::Failure;
use anyhow::{Result, bail, ensure};
use safetensors::tensor::{Dtype, SafeTensors, View, serialize};
use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::fmt;

/// Far above what the largest model of ours needs (about 130 bytes a tensor), far below what exhausts memory.
const MAX_HEADER_BYTES: u64 = 16 << 20;

/// A tensor to write.
pub struct TensorView<'a> {
    pub name: String,
    pub shape: Vec<usize>,
    pub data: &'a [f32],
}

/// Where a tensor that is read goes to.
pub struct TensorSlot<'a> {
    pub name: String,
    pub shape: Vec<usize>,
    pub data: &'a mut [f32],
}

impl View for &TensorView<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = vec![0; self.data_len()];
        for (bytes, number) in bytes.chunks_exact_mut(4).zip(self.data) {
            bytes.copy_from_slice(&number.to_le_bytes());
        }
        bytes.into()
    }

    fn data_len(&self) -> usize {
        self.data.len() * 4
    }
}

/// The file that holds these tensors, sorted by name. The same tensors give the same bytes, in any order and process.
///
/// # Errors
/// `Diverged` for a number that is not finite: [`decode`] would refuse the file.
pub fn encode(tensors: &[TensorView]) -> Result<Vec<u8>> {
    let mut names = BTreeSet::new();
    for TensorView { name, shape, data } in tensors {
        ensure!(name != "__metadata__" && names.insert(name), "two tensors, or the metadata, are named {name:?}");
        ensure!(elements(shape) == Some(data.len()), "{name:?} has {} numbers for shape {shape:?}", data.len());
        if let Some(index) = data.iter().position(|number| !number.is_finite()) {
            return Err(Failure::Diverged(format!("{name} holds {} at index {index}", data[index])).into());
        }
    }
    // Versions of transformers refuse a file that does not say "pt". The metadata is a hash map: with a second key, the
    // order of the two would differ between processes.
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let bytes = serialize(tensors.iter().map(|tensor| (&tensor.name, tensor)), Some(metadata))?;
    if header_length(&bytes).is_none_or(|length| length > MAX_HEADER_BYTES) {
        bail!("{} tensors are too many for one file", tensors.len());
    }
    Ok(bytes)
}

/// Copies every expected tensor out of the file `bytes`, which came from `origin`, into its slot. The file must hold
/// these tensors and no others, in f32, all numbers finite. After an error the slots hold anything.
///
/// # Errors
/// `CorruptCheckpoint` naming `origin`, the tensor, and what was found.
pub fn decode(bytes: &[u8], origin: &str, expected: &mut [TensorSlot]) -> Result<()> {
    let refuse = |what: String| corrupt(format!("{origin}: {what}"));
    match header_length(bytes) {
        None => return Err(refuse("too short for a safetensors file".to_string())),
        Some(length) if length > MAX_HEADER_BYTES => {
            return Err(refuse(format!("a header of {length} bytes, the limit is {MAX_HEADER_BYTES}")));
        }
        Some(_) => {}
    }
    // Checks that the offsets follow each other without overlap or hole from the header to the end of the file.
    let file = SafeTensors::deserialize(bytes).map_err(|error| refuse(error.to_string()))?;
    check_duplicates(bytes).map_err(|error| refuse(error.to_string()))?;
    for slot in expected.iter_mut() {
        let name = &slot.name;
        let found = file.tensor(name).map_err(|_| refuse(format!("tensor {name:?} is missing")))?;
        if found.dtype() != Dtype::F32 {
            return Err(refuse(format!("tensor {name:?} has dtype {}, expected F32", found.dtype())));
        }
        if found.shape() != slot.shape {
            let (found, expected) = (found.shape(), &slot.shape);
            return Err(refuse(format!("tensor {name:?} has shape {found:?}, expected {expected:?}")));
        }
        let length = slot.data.len();
        ensure!(elements(&slot.shape) == Some(length), "{name:?}: {length} places for shape {:?}", slot.shape);
        for (index, (place, bytes)) in slot.data.iter_mut().zip(found.data().as_chunks().0).enumerate() {
            *place = f32::from_le_bytes(*bytes);
            if !place.is_finite() {
                return Err(refuse(format!("tensor {name:?} holds {place} at index {index}")));
            }
        }
    }
    let names: BTreeSet<&str> = expected.iter().map(|slot| slot.name.as_str()).collect();
    let mut extra = file.names();
    extra.retain(|name| !names.contains(name));
    extra.sort_unstable();
    match extra.first() {
        Some(name) => Err(refuse(format!("tensor {name:?} is not part of this model ({} such tensors)", extra.len()))),
        None => Ok(()),
    }
}

fn elements(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size))
}

fn header_length(bytes: &[u8]) -> Option<u64> {
    bytes.first_chunk().map(|length| u64::from_le_bytes(*length))
}

/// The safetensors crate reads the header into a map, where the last of two equal names wins silently.
fn check_duplicates(bytes: &[u8]) -> serde_json::Result<()> {
    let length = header_length(bytes).and_then(|length| usize::try_from(length).ok()).unwrap_or(0);
    let header = bytes.get(8..).and_then(|rest| rest.get(..length)).unwrap_or_default();
    serde_json::from_slice::<UniqueNames>(header).map(|_| ())
}

struct UniqueNames;

impl<'de> Deserialize<'de> for UniqueNames {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(UniqueNames)
    }
}

impl<'de> Visitor<'de> for UniqueNames {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a header of named tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut header: A) -> Result<Self, A::Error> {
        let mut seen = BTreeSet::new();
        while let Some((name, _)) = header.next_entry::<String, IgnoredAny>()? {
            if seen.contains(&name) {
                return Err(A::Error::custom(format!("tensor {name:?} is listed twice")));
            }
            seen.insert(name);
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::exit_code;
    use proptest::prelude::*;

    const A: [f32; 6] = [1.0, -2.5, 0.0, f32::MIN_POSITIVE, f32::MAX, -0.0];
    const B: [f32; 2] = [3.0, 4.0];

    fn view<'a>(name: &str, shape: &[usize], data: &'a [f32]) -> TensorView<'a> {
        TensorView { name: name.to_string(), shape: shape.to_vec(), data }
    }

    fn example() -> Vec<u8> {
        encode(&[view("b", &[2], &B), view("a.weight", &[2, 3], &A)]).unwrap()
    }

    /// Reads the tensors of [`example`] out of `bytes`.
    fn read(bytes: &[u8]) -> Result<(Vec<f32>, Vec<f32>)> {
        let (mut a, mut b) = (vec![0.0; 6], vec![0.0; 2]);
        let a_slot = TensorSlot { name: "a.weight".to_string(), shape: vec![2, 3], data: &mut a };
        let b_slot = TensorSlot { name: "b".to_string(), shape: vec![2], data: &mut b };
        decode(bytes, "model.safetensors", &mut [a_slot, b_slot])?;
        Ok((a, b))
    }

    fn refusal(bytes: &[u8]) -> String {
        let error = read(bytes).unwrap_err();
        assert_eq!(exit_code(&error), 4, "{error:#}");
        error.to_string()
    }

    /// A file with this header over the numbers of [`example`].
    fn with_header(header: &str) -> Vec<u8> {
        let numbers = A.iter().chain(&B).flat_map(|number| number.to_le_bytes());
        (header.len() as u64).to_le_bytes().into_iter().chain(header.bytes()).chain(numbers).collect()
    }

    #[test]
    fn tensors_come_back_bit_for_bit() {
        let (a, b) = read(&example()).unwrap();
        assert_eq!(a.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), A.map(f32::to_bits));
        assert_eq!(b, B);
    }

    #[test]
    fn the_same_tensors_give_the_same_bytes_in_every_process_and_order() {
        let header = concat!(
            r#"{"__metadata__":{"format":"pt"},"a.weight":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"#,
            r#""b":{"dtype":"F32","shape":[2],"data_offsets":[24,32]}}"#,
        );
        let padded = format!("{header:width$}", width = header.len().next_multiple_of(8));
        assert_eq!(example(), with_header(&padded));
        assert_eq!(example(), encode(&[view("a.weight", &[2, 3], &A), view("b", &[2], &B)]).unwrap());
    }

    #[test]
    fn the_safetensors_crate_reads_what_is_written() {
        let bytes = example();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.tensor("a.weight").unwrap().shape(), [2, 3]);
        assert_eq!(file.tensor("b").unwrap().data(), B.map(f32::to_le_bytes).concat());
    }

    #[test]
    fn missing_extra_and_misshapen_tensors_are_named() {
        assert!(refusal(&encode(&[view("b", &[2], &B)]).unwrap()).contains("\"a.weight\" is missing"));
        let extra = [view("a.weight", &[2, 3], &A), view("b", &[2], &B), view("c", &[2], &B)];
        assert!(refusal(&encode(&extra).unwrap()).contains("\"c\" is not part of this model"));
        let misshapen = [view("a.weight", &[3, 2], &A), view("b", &[2], &B)];
        assert!(refusal(&encode(&misshapen).unwrap()).contains("has shape [3, 2], expected [2, 3]"));
    }

    #[test]
    fn wrong_dtypes_overlaps_holes_and_duplicates_are_refused() {
        let a = r#""a.weight":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}"#;
        let b = r#""b":{"dtype":"F32","shape":[2],"data_offsets":[24,32]}"#;
        read(&with_header(&format!("{{{a},{b}}}"))).unwrap();
        let found = refusal(&with_header(&format!("{{{a},{}}}", b.replace("F32", "U32"))));
        assert!(found.contains("\"b\" has dtype U32, expected F32"), "{found}");
        for offsets in ["[16,24]", "[20,28]", "[28,36]", "[24,28]", "[32,24]", "[24,32000]", "[-8,0]"] {
            refusal(&with_header(&format!("{{{a},{}}}", b.replace("[24,32]", offsets))));
        }
        let found = refusal(&with_header(&format!("{{{a},{b},{b}}}")));
        assert!(found.contains("\"b\" is listed twice"), "{found}");
        assert!(refusal(&u64::MAX.to_le_bytes()).contains("header of"));
        refusal(&with_header(r#"{"b":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,32]}}"#));
    }

    #[test]
    fn numbers_that_are_not_finite_are_named_on_both_ways() {
        let mut bytes = example();
        let last = bytes.len() - 4;
        bytes[last..].copy_from_slice(&f32::NAN.to_le_bytes());
        assert!(refusal(&bytes).contains("\"b\" holds NaN at index 1"));
        let error = encode(&[view("b", &[2], &[0.0, f32::INFINITY])]).unwrap_err();
        assert_eq!((exit_code(&error), error.to_string().as_str()), (3, "b holds inf at index 1"));
    }

    #[test]
    fn a_file_cut_or_extended_at_any_length_is_refused() {
        let whole = example();
        for length in 0..whole.len() {
            refusal(&whole[..length]);
        }
        refusal(&[whole, vec![0]].concat());
    }

    proptest! {
        #[test]
        fn random_bytes_are_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(read(&bytes).is_err());
        }

        #[test]
        fn a_damaged_header_never_panics(position in 0usize..200, byte in any::<u8>()) {
            let mut bytes = example();
            let position = position % bytes.len();
            bytes[position] = byte;
            let _ = read(&bytes);
        }
    }
}
