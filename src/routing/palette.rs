//! A colour for every expert, and text painted with it for terminals.

use crate::terminal::{Colours, nearest_indexed};
use std::fmt::Write;
use std::sync::OnceLock;

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

/// The backgrounds that come nearest to these, then the others, of the 16 colours of ANSI, as SGR parameters (ECMA-48,
/// section 8.3.117, and aixterm's bright ones). Black and white, one of which is the terminal's own, are left out.
const ANSI: [u8; 14] = [43, 106, 42, 103, 44, 41, 105, 100, 46, 102, 104, 101, 45, 47];

/// Columns of a legend line at most.
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
pub fn paint(text: &str, expert: usize, colours: Colours, out: &mut String) {
    let on = switched_on(expert, colours);
    for line in text.split_inclusive(['\n', '\r']) {
        let visible = line.trim_end_matches(['\n', '\r']);
        if !visible.is_empty() {
            // Writing to a String cannot fail.
            let _ = write!(out, "{on}{visible}\x1b[0m");
        }
        out.push_str(&line[visible.len()..]);
    }
}

/// The sequence that switches an expert's colours on.
fn switched_on(expert: usize, colours: Colours) -> String {
    let (r, g, b) = expert_colour(expert);
    // Relative luminance by Rec. 709, on gamma-encoded values.
    let luminance = 0.2126 * f64::from(r) + 0.7152 * f64::from(g) + 0.0722 * f64::from(b);
    let dark = luminance <= 115.0;
    match colours {
        Colours::Rgb => {
            let foreground = if dark { "255;255;255" } else { "0;0;0" };
            format!("\x1b[48;2;{r};{g};{b}m\x1b[38;2;{foreground}m")
        }
        Colours::Indexed => {
            let foreground = if dark { 231 } else { 16 };
            format!("\x1b[48;5;{}m\x1b[38;5;{foreground}m", indexed_colour(expert))
        }
        Colours::Ansi => {
            let background = ANSI[expert % ANSI.len()];
            let foreground = if [41, 44, 45, 100].contains(&background) { 97 } else { 30 };
            format!("\x1b[{background}m\x1b[{foreground}m")
        }
    }
}

/// The expert's colour among a terminal's 256: the nearest that no expert before it has.
fn indexed_colour(expert: usize) -> u8 {
    static COLOURS: OnceLock<Vec<u8>> = OnceLock::new();
    let choose = || {
        (0..64).fold(Vec::new(), |mut taken, expert| {
            taken.push(nearest_indexed(expert_colour(expert), &taken));
            taken
        })
    };
    COLOURS.get_or_init(choose)[expert % 64]
}

/// The numbers of all experts, each painted in its colour, in lines of at most `width` columns, 100 if it is more.
pub fn legend(num_experts: usize, width: usize, colours: Colours) -> String {
    let digits = num_experts.saturating_sub(1).to_string().len();
    let per_line = (width.min(WIDTH) / (digits + 3)).max(1);
    let mut out = String::new();
    for expert in 0..num_experts {
        paint(&format!(" {expert:>digits$} "), expert, colours, &mut out);
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
        paint("a\n\nb", 1, Colours::Rgb, &mut out);
        let on = "\x1b[48;2;86;180;233m\x1b[38;2;0;0;0m";
        assert_eq!(out, format!("{on}a\x1b[0m\n\n{on}b\x1b[0m"));
    }

    #[test]
    fn fewer_colours_have_sequences_of_their_own() {
        let painted = |colours| {
            let mut out = String::new();
            paint("a", 1, colours, &mut out);
            out
        };
        assert_eq!(painted(Colours::Indexed), "\x1b[48;5;74m\x1b[38;5;16ma\x1b[0m");
        assert_eq!(painted(Colours::Ansi), "\x1b[106m\x1b[30ma\x1b[0m");
        for (colours, distinct) in [(Colours::Indexed, 64), (Colours::Ansi, 14)] {
            let all: std::collections::HashSet<_> = (0..distinct).map(|e| switched_on(e, colours)).collect();
            assert_eq!(all.len(), distinct, "{colours:?}");
        }
    }

    #[test]
    fn a_legend_of_64_experts_fits_the_width() {
        for (width, lines) in [(1_000, 4), (100, 4), (80, 4), (50, 7), (1, 64)] {
            let legend = legend(64, width, Colours::Rgb);
            assert_eq!(legend.lines().count(), lines, "{width}");
            for line in legend.lines() {
                let columns = console::measure_text_width(line);
                assert!(columns <= width.max(4), "{columns}");
            }
            assert!(legend.contains(" 63 ") && legend.ends_with('\n'));
        }
    }
}
