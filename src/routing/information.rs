//! Measures of dependence that several parts of the report share.
//!
//! - Mutual information of a table of counts n_ij over n: I = sum_ij n_ij / n log2 (n_ij n / (n_i. n_.j)) bits (Cover and
//!   Thomas 2006, eq. 2.28). It is never negative, and above 0 by chance wherever counts are finite.
//! - Explained share: mutual information of what a group of tokens tells about the expert, less what chance gives, over
//!   what there is to tell. The expert of a (token, expert) pair has the entropy H of the loads; who knows the token knows
//!   its K experts, and which of them the pair has remains open: there are H - log2 K bits to tell.
//! - Evidence of a two-by-two table: the log-likelihood ratio 2 n I ln 2 (Dunning 1993) as bits, n I: how many bits
//!   the knowledge of one side saves in telling the other, over all n tokens. Chance reaches E bits with a probability of
//!   about 2^-E at most.

/// Mutual information in bits of a table of counts with `columns` columns.
pub fn mutual_information(counts: &[u64], columns: usize) -> f64 {
    let total = counts.iter().sum::<u64>() as f64;
    let column_sums: Vec<f64> =
        (0..columns).map(|column| counts.iter().skip(column).step_by(columns).sum::<u64>() as f64).collect();
    let mut bits = 0.0;
    for row in counts.chunks_exact(columns) {
        let row_sum = row.iter().sum::<u64>() as f64;
        for (&count, &column_sum) in row.iter().zip(&column_sums).filter(|&(&count, _)| count > 0) {
            let count = count as f64;
            bits += count / total * (count * total / (row_sum * column_sum)).log2();
        }
    }
    bits
}

/// The part of an information that `chance` does not give, of all that there is to tell about one of a token's K experts;
/// `share_E` is their load. None where nothing is open: every token has the same experts.
pub fn explained(information: f64, chance: f64, share_E: &[f64], K: usize) -> Option<f64> {
    let entropy = -share_E.iter().filter(|&&share| share > 0.0).map(|share| share * share.log2()).sum::<f64>();
    let open = entropy - (K as f64).log2();
    (open > 1e-9).then(|| (information - chance).max(0.0) / open)
}

/// What a table of `pairs` independent pairs has by chance in the mean (Miller 1955): its degrees of freedom over 2 n ln 2.
pub fn chance_information(groups: usize, experts: usize, pairs: u64) -> f64 {
    let freedom = (groups.saturating_sub(1) * experts.saturating_sub(1)) as f64;
    freedom / (2.0 * pairs.max(1) as f64 * std::f64::consts::LN_2)
}

/// Bits of evidence that `part` of `all` tokens depends on `served` of `all`, where `both` have both: n I of the table
/// of has and has not.
pub fn evidence(both: u64, part: u64, served: u64, all: u64) -> f64 {
    let table = [both, part - both, served - both, all + both - part - served];
    all as f64 * mutual_information(&table, 2)
}

/// How many standard deviations `both` lies above what `part` tokens would give by chance, `served / all` of each.
pub fn z_score(both: u64, part: u64, served: u64, all: u64) -> f64 {
    let share = served as f64 / all.max(1) as f64;
    let deviation = (part as f64 * share * (1.0 - share)).sqrt();
    if deviation == 0.0 { 0.0 } else { (both as f64 - part as f64 * share) / deviation }
}

/// Spearman's rank correlation (1904): Pearson's, of ranks; equal values share their mean rank. None where one side has
/// no order, or there are fewer than two.
pub fn rank_correlation(a: &[f64], b: &[f64]) -> Option<f64> {
    let (a, b) = (ranks(a), ranks(b));
    let mean = (a.len() as f64 - 1.0) / 2.0;
    let product = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| (x - mean) * (y - mean)).sum::<f64>();
    let scale = (product(&a, &a) * product(&b, &b)).sqrt();
    (scale > 0.0).then(|| product(&a, &b) / scale)
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&i, &j| values[i].total_cmp(&values[j]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    while start < order.len() {
        let equal = order[start..].iter().take_while(|&&i| values[i] == values[order[start]]).count();
        for &i in &order[start..start + equal] {
            ranks[i] = start as f64 + (equal - 1) as f64 / 2.0;
        }
        start += equal;
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::super::trace::tests::close;
    use super::*;

    #[test]
    fn mutual_information_of_small_tables_by_hand() {
        close(mutual_information(&[5, 5, 5, 5], 2), 0.0);
        // Each side tells the other: one bit.
        close(mutual_information(&[4, 0, 0, 4], 2), 1.0);
        // 1/2 log2 (4/3) + 1/4 log2 (2/3) + 1/4 log2 2
        close(mutual_information(&[2, 1, 0, 1], 2), 0.311_278_1);
        close(mutual_information(&[0, 0, 0, 0], 2), 0.0);
    }

    #[test]
    fn what_is_explained_is_a_share_of_what_there_is_to_tell() {
        // Even loads of four experts, one each: 2 bits. Half a bit, of which 0.1 is chance.
        close(explained(0.5, 0.1, &[0.25; 4], 1).unwrap(), 0.2);
        // Two of four for each token: 1 bit is left to tell, and a table that tells it all has 1 bit.
        close(explained(1.0, 0.0, &[0.25; 4], 2).unwrap(), 1.0);
        close(explained(0.1, 0.2, &[0.25; 4], 2).unwrap(), 0.0);
        assert_eq!(explained(0.0, 0.0, &[0.25; 4], 4), None);
        assert_eq!(explained(0.0, 0.0, &[1.0], 1), None);
        // 2 x 3 degrees of freedom over 2 * 1000 ln 2.
        close(chance_information(3, 4, 1000), 0.004_328_1);
        // Independent pairs have about that much.
        let stream = crate::random::Stream::new(3, "pairs", &[]);
        let mut counts = vec![0u64; 12];
        (0..1000).for_each(|n| counts[(stream.uniform(n) * 12.0) as usize] += 1);
        assert!((mutual_information(&counts, 4) - 0.0043).abs() < 0.004);
    }

    #[test]
    fn evidence_counts_the_bits_over_all_tokens() {
        close(evidence(4, 4, 4, 8), 8.0);
        close(evidence(2, 4, 4, 8), 0.0);
        close(evidence(2, 2, 3, 4), 4.0 * 0.311_278_1);
    }

    #[test]
    fn z_is_in_binomial_standard_deviations() {
        // 16 tokens, a quarter expected: 4, with a variance of 16 * 1/4 * 3/4 = 3.
        close(z_score(10, 16, 25, 100), 6.0 / 3f64.sqrt());
        close(z_score(16, 16, 100, 100), 0.0);
    }

    #[test]
    fn ranks_correlate_by_hand_and_ties_share_theirs() {
        close(rank_correlation(&[1.0, 2.0, 3.0], &[10.0, 20.0, 90.0]).unwrap(), 1.0);
        close(rank_correlation(&[1.0, 2.0, 3.0], &[3.0, 2.0, 1.0]).unwrap(), -1.0);
        // Without ties: 1 - 6 * (0 + 1 + 1) / (3 * 8) = 0.5.
        close(rank_correlation(&[1.0, 2.0, 3.0], &[1.0, 3.0, 2.0]).unwrap(), 0.5);
        // Ranks 0.5, 0.5, 2 and 0, 1, 2: 1.5 / sqrt(1.5 * 2).
        close(rank_correlation(&[7.0, 7.0, 8.0], &[1.0, 2.0, 3.0]).unwrap(), 0.75f64.sqrt());
        assert_eq!(rank_correlation(&[1.0, 1.0], &[1.0, 2.0]), None);
    }
}
