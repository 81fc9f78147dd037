//! Packed integer arithmetic inside 64-bit words.
//!
//! A word holds eight, four or two lanes of `W` bits. Each operation treats all of them at once with word arithmetic
//! that no carry can cross lanes in; it is as fast on any host, and compilers turn pairs of words into vector code
//! where they can. The tests compare every operation with the same done lane by lane.

/// The lowest bit of every lane.
#[inline(always)]
const fn ones(w: u32) -> u64 {
    if w == 64 { 1 } else { u64::MAX / ((1 << w) - 1) }
}

/// The highest bit of every lane.
#[inline(always)]
const fn signs(w: u32) -> u64 {
    ones(w) << (w - 1)
}

/// Spreads the highest bit of every lane over the lane; the other bits of `m` are clear.
#[inline(always)]
fn spread<const W: u32>(m: u64) -> u64 {
    (m << 1).wrapping_sub(m >> (W - 1))
}

/// Bits of `a` where `mask` is set, else of `b`.
#[inline(always)]
fn select(mask: u64, a: u64, b: u64) -> u64 {
    b ^ (mask & (a ^ b))
}

#[inline(always)]
pub(super) fn add<const W: u32>(a: u64, b: u64) -> u64 {
    let h = signs(W);
    ((a & !h).wrapping_add(b & !h)) ^ ((a ^ b) & h)
}

#[inline(always)]
pub(super) fn sub<const W: u32>(a: u64, b: u64) -> u64 {
    let h = signs(W);
    ((a | h).wrapping_sub(b & !h)) ^ ((a ^ !b) & h)
}

/// All ones where lanes are equal.
#[inline(always)]
pub(super) fn eq<const W: u32>(a: u64, b: u64) -> u64 {
    let (h, t) = (signs(W), a ^ b);
    spread::<W>(!((t & !h).wrapping_add(!h) | t) & h)
}

/// The borrow out of every lane of `a - b`, in its highest bit; `d` is the difference.
#[inline(always)]
fn borrow<const W: u32>(a: u64, b: u64, d: u64) -> u64 {
    ((!a & b) | ((!a | b) & d)) & signs(W)
}

#[inline(always)]
fn below<const W: u32>(a: u64, b: u64) -> u64 {
    spread::<W>(borrow::<W>(a, b, sub::<W>(a, b)))
}

/// All ones where `a` is greater, as signed numbers.
#[inline(always)]
pub(super) fn greater<const W: u32>(a: u64, b: u64) -> u64 {
    below::<W>(b ^ signs(W), a ^ signs(W))
}

#[inline(always)]
pub(super) fn min_unsigned<const W: u32>(a: u64, b: u64) -> u64 {
    select(below::<W>(a, b), a, b)
}

#[inline(always)]
pub(super) fn max_unsigned<const W: u32>(a: u64, b: u64) -> u64 {
    select(below::<W>(a, b), b, a)
}

#[inline(always)]
pub(super) fn min_signed<const W: u32>(a: u64, b: u64) -> u64 {
    select(greater::<W>(a, b), b, a)
}

#[inline(always)]
pub(super) fn max_signed<const W: u32>(a: u64, b: u64) -> u64 {
    select(greater::<W>(a, b), a, b)
}

#[inline(always)]
pub(super) fn add_unsigned_saturating<const W: u32>(a: u64, b: u64) -> u64 {
    let s = add::<W>(a, b);
    s | spread::<W>(((a & b) | ((a | b) & !s)) & signs(W))
}

#[inline(always)]
pub(super) fn sub_unsigned_saturating<const W: u32>(a: u64, b: u64) -> u64 {
    let d = sub::<W>(a, b);
    d & !spread::<W>(borrow::<W>(a, b, d))
}

/// The largest number where `a` is positive, the smallest where it is negative.
#[inline(always)]
fn limit<const W: u32>(a: u64) -> u64 {
    (a >> (W - 1) & ones(W)).wrapping_add(!signs(W))
}

#[inline(always)]
pub(super) fn add_signed_saturating<const W: u32>(a: u64, b: u64) -> u64 {
    let s = add::<W>(a, b);
    let overflow = spread::<W>(!(a ^ b) & (a ^ s) & signs(W));
    select(overflow, limit::<W>(a), s)
}

#[inline(always)]
pub(super) fn sub_signed_saturating<const W: u32>(a: u64, b: u64) -> u64 {
    let d = sub::<W>(a, b);
    let overflow = spread::<W>((a ^ b) & (a ^ d) & signs(W));
    select(overflow, limit::<W>(a), d)
}

/// The mean of two unsigned numbers, rounded up.
#[inline(always)]
pub(super) fn average<const W: u32>(a: u64, b: u64) -> u64 {
    (a | b).wrapping_sub(((a ^ b) & !ones(W)) >> 1)
}

#[inline(always)]
pub(super) fn abs<const W: u32>(a: u64) -> u64 {
    let n = spread::<W>(a & signs(W));
    sub::<W>(a ^ n, n)
}

/// PSIGN: `a` with its sign inverted where `b` is negative, zero where `b` is.
#[inline(always)]
pub(super) fn sign<const W: u32>(a: u64, b: u64) -> u64 {
    let n = spread::<W>(b & signs(W));
    sub::<W>(a ^ n, n) & !eq::<W>(b, 0)
}

/// Shifts left; counts of `W` and more leave zeros.
#[inline(always)]
pub(super) fn shl<const W: u32>(a: u64, count: u64) -> u64 {
    if count >= u64::from(W) {
        return 0;
    }
    let lane = u64::MAX >> (64 - W);
    (a << count) & (lane << count & lane).wrapping_mul(ones(W))
}

/// Shifts right; counts of `W` and more leave zeros.
#[inline(always)]
pub(super) fn shr<const W: u32>(a: u64, count: u64) -> u64 {
    if count >= u64::from(W) {
        return 0;
    }
    let lane = u64::MAX >> (64 - W);
    (a >> count) & (lane >> count).wrapping_mul(ones(W))
}

/// Shifts right, filling with the sign; counts of `W` and more act as `W - 1`.
#[inline(always)]
pub(super) fn sar<const W: u32>(a: u64, count: u64) -> u64 {
    let count = count.min(u64::from(W) - 1);
    let kept = (u64::MAX >> (64 - W) >> count).wrapping_mul(ones(W));
    shr::<W>(a, count) | spread::<W>(a & signs(W)) & !kept
}

/// Applies a function to 16-bit lanes.
#[inline(always)]
pub(super) fn words(a: u64, b: u64, f: impl Fn(u16, u16) -> u16) -> u64 {
    (0..4).fold(0, |r, n| r | u64::from(f((a >> (16 * n)) as u16, (b >> (16 * n)) as u16)) << (16 * n))
}

/// Applies a function to 32-bit lanes.
#[inline(always)]
pub(super) fn dwords(a: u64, b: u64, f: impl Fn(u32, u32) -> u32) -> u64 {
    u64::from(f(a as u32, b as u32)) | u64::from(f((a >> 32) as u32, (b >> 32) as u32)) << 32
}

/// The bytes of `a` and `b` in turn, `a` first.
#[inline(always)]
pub(super) fn unpack8(a: u32, b: u32) -> u64 {
    let apart = |x: u32| {
        let x = u64::from(x);
        let x = (x | x << 16) & 0x0000_ffff_0000_ffff;
        (x | x << 8) & 0x00ff_00ff_00ff_00ff
    };
    apart(a) | apart(b) << 8
}

/// The 16-bit halves of `a` and `b` in turn, `a` first.
#[inline(always)]
pub(super) fn unpack16(a: u32, b: u32) -> u64 {
    let apart = |x: u32| u64::from(x & 0xffff) | u64::from(x >> 16) << 32;
    apart(a) | apart(b) << 16
}

/// `a` below `b`.
#[inline(always)]
pub(super) fn unpack32(a: u32, b: u32) -> u64 {
    u64::from(a) | u64::from(b) << 32
}

/// Four 16-bit lanes cut to bytes by `f`.
#[inline(always)]
pub(super) fn pack16(a: u64, f: impl Fn(i16) -> u8) -> u32 {
    (0..4).fold(0, |r, n| r | u32::from(f((a >> (16 * n)) as i16)) << (8 * n))
}

/// Two 32-bit lanes cut to 16 bits by `f`.
#[inline(always)]
pub(super) fn pack32(a: u64, f: impl Fn(i32) -> u16) -> u32 {
    u32::from(f(a as i32)) | u32::from(f((a >> 32) as i32)) << 16
}

/// The highest bits of the eight bytes.
#[inline(always)]
pub(super) fn byte_signs(a: u64) -> u64 {
    (a & 0x8080_8080_8080_8080).wrapping_mul(0x0002_0408_1020_4081) >> 56
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words full of edge cases: every lane pattern meets every other one.
    fn samples() -> Vec<u64> {
        let edges = [0u64, 1, 2, 0x7f, 0x80, 0x81, 0xfe, 0xff];
        let mut out: Vec<u64> = edges.iter().map(|e| e * 0x0101_0101_0101_0101).collect();
        let mut x = 0x9e37_79b9_7f4a_7c15u64;
        for n in 0..400 {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            let mixed = (0..8).fold(0, |r, k| r | edges[(x >> (3 * k)) as usize & 7] << (8 * k));
            out.push(if n % 2 == 0 { x } else { mixed });
        }
        out
    }

    fn by_lane<const W: u32>(a: u64, b: u64, f: impl Fn(i64, i64) -> i64) -> u64 {
        let cut = |x: u64, n: u32| ((x >> (n * W)) << (64 - W)) as i64 >> (64 - W);
        (0..64 / W).fold(0, |r, n| r | (f(cut(a, n), cut(b, n)) as u64 & u64::MAX >> (64 - W)) << (n * W))
    }

    fn check<const W: u32>() {
        let mask = u64::MAX >> (64 - W);
        let (max, min) = ((mask >> 1) as i64, -((mask >> 1) as i64) - 1);
        let u = |x: i64| x as u64 & mask;
        let all = |c: bool| if c { -1 } else { 0 };
        let samples = samples();
        for (k, &a) in samples.iter().enumerate() {
            for &b in samples.iter().skip(k % 7).step_by(7) {
                let same = |name: &str, got: u64, f: &dyn Fn(i64, i64) -> i64| {
                    assert_eq!(got, by_lane::<W>(a, b, f), "{name} of {a:016x} and {b:016x} in {W}");
                };
                same("add", add::<W>(a, b), &|a, b| a.wrapping_add(b));
                same("sub", sub::<W>(a, b), &|a, b| a.wrapping_sub(b));
                same("eq", eq::<W>(a, b), &|a, b| all(a == b));
                same("greater", greater::<W>(a, b), &|a, b| all(a > b));
                same("min_unsigned", min_unsigned::<W>(a, b), &|a, b| u(a).min(u(b)) as i64);
                same("max_unsigned", max_unsigned::<W>(a, b), &|a, b| u(a).max(u(b)) as i64);
                same("min_signed", min_signed::<W>(a, b), &|a, b| a.min(b));
                same("max_signed", max_signed::<W>(a, b), &|a, b| a.max(b));
                same("add_us", add_unsigned_saturating::<W>(a, b), &|a, b| (u(a) + u(b)).min(mask) as i64);
                same("sub_us", sub_unsigned_saturating::<W>(a, b), &|a, b| u(a).saturating_sub(u(b)) as i64);
                same("add_ss", add_signed_saturating::<W>(a, b), &|a, b| (a + b).clamp(min, max));
                same("sub_ss", sub_signed_saturating::<W>(a, b), &|a, b| (a - b).clamp(min, max));
                same("average", average::<W>(a, b), &|a, b| ((u(a) + u(b) + 1) >> 1) as i64);
                same("abs", abs::<W>(a), &|a, _| a.abs());
                same("sign", sign::<W>(a, b), &|a, b| a * b.signum());
            }
            for count in [0, 1, 3, W / 2, W - 1, W, W + 1, 64, 1000] {
                let wide = count >= W;
                let c = u64::from(count);
                let same = |name: &str, got: u64, f: &dyn Fn(i64, i64) -> i64| {
                    assert_eq!(got, by_lane::<W>(a, 0, f), "{name} of {a:016x} by {count} in {W}");
                };
                same("shl", shl::<W>(a, c), &|a, _| if wide { 0 } else { a << count });
                same("shr", shr::<W>(a, c), &|a, _| if wide { 0 } else { (u(a) >> count) as i64 });
                same("sar", sar::<W>(a, c), &|a, _| a >> count.min(W - 1));
            }
        }
    }

    #[test]
    fn operations_on_whole_words_equal_those_done_lane_by_lane() {
        check::<8>();
        check::<16>();
        check::<32>();
    }

    #[test]
    fn lanes_of_a_whole_word_work_too() {
        for a in samples() {
            for b in samples().into_iter().step_by(5) {
                assert_eq!(eq::<64>(a, b), if a == b { u64::MAX } else { 0 });
                assert_eq!(greater::<64>(a, b), if a as i64 > b as i64 { u64::MAX } else { 0 });
                assert_eq!(eq::<64>(a, a), u64::MAX);
            }
            assert_eq!((shl::<64>(a, 63), shr::<64>(a, 63), shl::<64>(a, 64)), (a << 63, a >> 63, 0));
        }
    }

    #[test]
    fn bytes_are_interleaved_and_their_signs_collected() {
        assert_eq!(unpack8(0x4433_2211, 0x8877_6655), 0x8844_7733_6622_5511);
        assert_eq!(unpack16(0x2222_1111, 0x4444_3333), 0x4444_2222_3333_1111);
        assert_eq!(byte_signs(0x8000_ff7f_0180_0080), 0b1010_0101);
    }
}
