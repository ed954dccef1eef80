//! Vector code without intrinsics: kernels are plain loops over fixed-size chunks, compiled once for each instruction
//! set, and the best one that this CPU has is chosen when the program runs. No kernel fuses multiply and add or
//! changes the order of a sum, so all of them give the same bits on every path.
//!
//! The environment variable `TINYMOE_SIMD` forces a path: `portable`, `avx2` or `avx512`.

use crate::error::Failure;
use std::sync::OnceLock;

/// Lanes of a sum: four AVX2 registers, or two of AVX-512.
const LANES: usize = 32;

/// Compiles a closure for each instruction set and calls the one for the widest instructions at hand. Everything that
/// it calls must be `#[inline(always)]` to be compiled with it; the macro sees to the closure itself.
macro_rules! vectorized {
    (|| $kernel:expr) => {
        $crate::ops::simd::dispatch(
            #[inline(always)]
            || $kernel,
        )
    };
}
pub(crate) use vectorized;

/// The function behind [`vectorized!`].
#[inline(always)]
pub fn dispatch<R>(kernel: impl FnOnce() -> R) -> R {
    arch().dispatch(kernel)
}

/// The instruction sets that kernels are compiled for. Matrix products have code of their own for AVX2 and AVX-512.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    Portable,
    Neon,
    Avx2,
    Avx512,
}

impl Path {
    /// As in `TINYMOE_SIMD`, `run.json` and `bench`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Neon => "neon",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    fn of(arch: pulp::Arch) -> Self {
        match arch {
            #[cfg(target_arch = "x86_64")]
            pulp::Arch::V4(_) => Self::Avx512,
            #[cfg(target_arch = "x86_64")]
            pulp::Arch::V3(_) => Self::Avx2,
            #[cfg(target_arch = "aarch64")]
            pulp::Arch::Neon(_) => Self::Neon,
            _ => Self::Portable,
        }
    }
}

/// The path in use, chosen once.
#[inline(always)]
pub fn path() -> Path {
    chosen().1
}

#[inline(always)]
fn arch() -> pulp::Arch {
    chosen().0
}

#[inline(always)]
fn chosen() -> (pulp::Arch, Path) {
    static CHOSEN: OnceLock<(pulp::Arch, Path)> = OnceLock::new();
    *CHOSEN.get_or_init(|| {
        let arch = choose(std::env::var("TINYMOE_SIMD").ok().as_deref());
        (arch, Path::of(arch))
    })
}

/// Whether the path that the environment asks for is available.
///
/// # Errors
/// [`Failure::Usage`] where it is unknown or this CPU lacks it.
pub fn check_environment() -> anyhow::Result<()> {
    match std::env::var("TINYMOE_SIMD") {
        Ok(asked) if asked != path().name() => {
            let name = path().name();
            Err(Failure::Usage(format!("TINYMOE_SIMD={asked} is not available on this CPU, which would need {name}"))
                .into())
        }
        _ => Ok(()),
    }
}

#[cfg(target_arch = "x86_64")]
fn choose(forced: Option<&str>) -> pulp::Arch {
    use pulp::Arch;
    let avx2 = || pulp::x86::V3::try_new().map(Arch::V3);
    let avx512 = || pulp::x86::V4::try_new().map(Arch::V4);
    match forced {
        Some("portable") => Arch::Scalar,
        Some("avx2") => avx2().unwrap_or(Arch::Scalar),
        _ => avx512().or_else(avx2).unwrap_or(Arch::Scalar),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn choose(_forced: Option<&str>) -> pulp::Arch {
    pulp::Arch::new()
}

/// The sum of `term(i)` over `0..count`, in [`LANES`] interleaved partial sums.
#[inline(always)]
pub fn sum_of(count: usize, term: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let whole = count / LANES * LANES;
    let mut start = 0;
    while start < whole {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += term(start + lane);
        }
        start += LANES;
    }
    for (lane, sum) in lanes.iter_mut().enumerate().take(count - whole) {
        *sum += term(whole + lane);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// The dot product of two slices of equal length.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let b = &b[..a.len()];
    sum_of(a.len(), |i| a[i] * b[i])
}

/// The sum of a slice.
#[inline(always)]
pub fn sum(a: &[f32]) -> f32 {
    sum_of(a.len(), |i| a[i])
}

/// The largest number of a slice that is not NaN; negative infinity if there is none.
#[inline(always)]
pub fn max(a: &[f32]) -> f32 {
    // This comparison is what the vector instruction does; one that keeps NaN is compiled to scalar code.
    let larger = |best: f32, x: f32| if x > best { x } else { best };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, tail) = a.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(tail) {
        *lane = larger(*lane, x);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = larger(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// A number's magnitude as bits, which order as magnitudes do; whatever is not finite comes last, NaN behind infinity.
#[inline(always)]
pub fn magnitude_bits(x: f32) -> u32 {
    x.to_bits() & 0x7fff_ffff
}

/// The largest of [`magnitude_bits`] in a slice; 0 if it is empty. Unlike [`max`] it does not pass over NaN.
#[inline(always)]
pub fn max_magnitude_bits(a: &[f32]) -> u32 {
    a.iter().fold(0, |largest, &x| largest.max(magnitude_bits(x)))
}

/// e^x to about 2 units in the last place; saturates outside [-87.3, 88]; NaN stays NaN.
///
/// Cephes' `expf`: x = n ln 2 + r with |r| <= ln 2 / 2, a polynomial for e^r, and n put into the exponent bits.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    let x = if x < -87.3 { -87.3 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let exponent = rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    (p * r * r + r + 1.0) * f32::from_bits(exponent)
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `y += scale * x`.
#[inline(always)]
pub fn add_scaled(y: &mut [f32], scale: f32, x: &[f32]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y += scale * x;
    }
}

/// `y += x`.
#[inline(always)]
pub fn add(y: &mut [f32], x: &[f32]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y += x;
    }
}

/// Replaces logits by their softmax; returns their log-sum-exp.
#[inline(always)]
pub fn softmax(row: &mut [f32]) -> f32 {
    let largest = max(row);
    for x in row.iter_mut() {
        *x = exp(*x - largest);
    }
    let total = sum(row);
    let inverse = 1.0 / total;
    for x in row.iter_mut() {
        *x *= inverse;
    }
    largest + total.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_over_its_range_and_keeps_nan() {
        for step in -8700..8800 {
            let x = step as f32 * 0.01;
            let exact = f64::from(x).exp();
            let relative = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(relative < 3e-7, "exp({x}) is off by {relative:e}");
        }
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(f32::NEG_INFINITY) < 1e-37 && exp(f32::INFINITY).is_finite());
    }

    #[test]
    fn sums_have_the_same_bits_on_every_path() {
        let a: Vec<f32> = (0..1003).map(|i| (i as f32 * 0.37).sin()).collect();
        let widest = vectorized!(|| (dot(&a, &a), sum(&a), max(&a)));
        let portable = choose(Some("portable")).dispatch(|| (dot(&a, &a), sum(&a), max(&a)));
        assert_eq!(widest, portable);
        let exact: f64 = a.iter().map(|&x| f64::from(x).powi(2)).sum();
        assert!((f64::from(widest.0) - exact).abs() < 1e-3);
    }

    #[test]
    fn max_finds_the_largest_wherever_it_stands() {
        for position in [0, 31, 32, 69] {
            let mut a = vec![1.0; 70];
            a[position] = 2.0;
            assert_eq!(vectorized!(|| max(&a)), 2.0, "at {position}");
        }
        assert_eq!(max(&[]), f32::NEG_INFINITY);
    }

    #[test]
    fn magnitudes_order_by_their_bits_and_nan_comes_last() {
        let mut a = vec![-1.0; 70];
        for (position, number) in [(69, -2.0), (31, 3.0), (7, f32::NEG_INFINITY), (40, -f32::NAN)] {
            a[position] = number;
            let largest = f32::from_bits(vectorized!(|| max_magnitude_bits(&a)));
            assert_eq!(largest.to_bits(), number.abs().to_bits(), "{number}");
        }
        assert_eq!(max_magnitude_bits(&[]), 0);
    }

    #[test]
    fn a_row_with_nan_anywhere_has_no_softmax_but_nan() {
        for position in [0, 31, 32, 69] {
            let mut a = vec![1.0; 70];
            a[position] = f32::NAN;
            let lse = vectorized!(|| softmax(&mut a));
            assert!(lse.is_nan() && a.iter().all(|x| x.is_nan()), "at {position}");
        }
    }
}
