//! Moving sums that are as exact as adding each window up.
//!
//! A running sum that subtracts what leaves the window carries its rounding along; here a window is the tail of one block added
//! to the head of the next one (van Herk, Gil and Werman), so that nothing is ever subtracted.

/// Sums of each `width` successive values, `values.len() - width + 1` of them; none when there are fewer values.
pub fn sums(values: &[f64], width: usize) -> Vec<f64> {
    if width == 0 || values.len() < width {
        return Vec::new();
    }
    let mut tails = values.to_vec();
    let mut heads = values.to_vec();
    for (tails, heads) in tails.chunks_mut(width).zip(heads.chunks_mut(width)) {
        for index in (1..tails.len()).rev() {
            tails[index - 1] += tails[index];
        }
        for index in 1..heads.len() {
            heads[index] += heads[index - 1];
        }
    }
    let windows = values.len() - width + 1;
    (0..windows)
        .map(|start| match start % width {
            0 => tails[start],
            _ => tails[start] + heads[start + width - 1],
        })
        .collect()
}

/// Means of each `width` successive values.
pub fn means(values: &[f64], width: usize) -> Vec<f64> {
    let mut means = sums(values, width);
    for mean in &mut means {
        *mean /= width as f64;
    }
    means
}
