//! A colour for every expert, and text painted with it for terminals with 24-bit colour.

use std::fmt::Write;

/// The palette of Okabe and Ito (2008), which stays distinct under the common forms of colour blindness. Its black is
/// a dark grey here: black would be invisible on dark terminals.
const OKABE_ITO: [(u8, u8, u8); 8] = [
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (80, 80, 80),
];

/// Columns of a legend line.
const WIDTH: usize = 100;

/// The colour of an expert as red, green, blue: Okabe and Ito's for the first eight, then fourteen hues in each of four
/// lightnesses, chosen so that no two of all are closer than 11 in CIELAB. Colours repeat after 64.
pub fn expert_colour(expert: usize) -> (u8, u8, u8) {
    let expert = expert % 64;
    if let Some(&colour) = OKABE_ITO.get(expert) {
        return colour;
    }
    let (turn, level) = ((expert - 8) / 4, expert % 4);
    let hue = turn as f64 * 360.0 / 14.0 + level as f64 * 103.0 + 15.0;
    hsl(hue % 360.0, 0.75, [0.28, 0.62, 0.45, 0.80][level])
}

/// Hue in degrees, saturation and lightness in [0, 1] (the formula of CSS Color 4, section 7.1).
fn hsl(hue: f64, saturation: f64, lightness: f64) -> (u8, u8, u8) {
    let channel = |n: f64| {
        let k = (n + hue / 30.0) % 12.0;
        let amplitude = saturation * lightness.min(1.0 - lightness);
        let value = lightness - amplitude * (k - 3.0).min(9.0 - k).clamp(-1.0, 1.0);
        (value * 255.0).round() as u8
    };
    (channel(0.0), channel(8.0), channel(4.0))
}

/// Appends `text` to `out` on a background of the expert's colour, in black or white, whichever reads better. The
/// colour is switched off around line ends, where terminals would smear it over the rest of the line.
pub fn paint(text: &str, expert: usize, out: &mut String) {
    let (r, g, b) = expert_colour(expert);
    // Relative luminance by Rec. 709, on gamma-encoded values.
    let luminance = 0.2126 * f64::from(r) + 0.7152 * f64::from(g) + 0.0722 * f64::from(b);
    let foreground = if luminance > 115.0 { "0;0;0" } else { "255;255;255" };
    for line in text.split_inclusive(['\n', '\r']) {
        let visible = line.trim_end_matches(['\n', '\r']);
        if !visible.is_empty() {
            // Writing to a String cannot fail.
            let _ = write!(out, "\x1b[48;2;{r};{g};{b}m\x1b[38;2;{foreground}m{visible}\x1b[0m");
        }
        out.push_str(&line[visible.len()..]);
    }
}

/// The numbers of all experts, each painted in its colour, in lines of at most 100 columns.
pub fn legend(num_experts: usize) -> String {
    let digits = num_experts.saturating_sub(1).to_string().len();
    let per_line = WIDTH / (digits + 3);
    let mut out = String::new();
    for expert in 0..num_experts {
        paint(&format!(" {expert:>digits$} "), expert, &mut out);
        let line_ends = (expert + 1) % per_line == 0 || expert + 1 == num_experts;
        out.push(if line_ends { '\n' } else { ' ' });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixty_four_experts_have_visibly_different_colours() {
        for a in 0..64 {
            for b in 0..a {
                let ((r1, g1, b1), (r2, g2, b2)) = (expert_colour(a), expert_colour(b));
                let distance = [r1.abs_diff(r2), g1.abs_diff(g2), b1.abs_diff(b2)].map(u32::from).iter().sum::<u32>();
                assert!(distance >= 16, "{a} {:?} and {b} {:?}", expert_colour(a), expert_colour(b));
            }
        }
    }

    #[test]
    fn colour_ends_before_a_line_does() {
        let mut out = String::new();
        paint("a\n\nb", 1, &mut out);
        let on = "\x1b[48;2;86;180;233m\x1b[38;2;0;0;0m";
        assert_eq!(out, format!("{on}a\x1b[0m\n\n{on}b\x1b[0m"));
    }

    #[test]
    fn a_legend_of_64_experts_takes_lines_of_at_most_100_columns() {
        let legend = legend(64);
        assert_eq!(legend.lines().count(), 4);
        for line in legend.lines() {
            let columns: usize =
                line.split('\x1b').map(|part| part.split_once('m').map_or(part, |(_, text)| text).len()).sum();
            assert!(columns <= 100, "{columns}");
        }
        assert!(legend.contains(" 63 ") && legend.ends_with('\n'));
    }
}
