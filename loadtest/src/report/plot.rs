//! Plots over time, as SVG that stands in a page by itself.

use std::fmt::Write as _;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 64.0;
const BOTTOM: f64 = 24.0;
const TOP: f64 = 24.0;
const RIGHT: f64 = 8.0;
const COLOURS: [&str; 8] =
    ["#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4b5563"];

/// A line: what it is called, and its points of seconds and values.
pub(super) struct Line {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
}

/// A plot of lines that have one scale; empty if there is nothing to see.
pub(super) fn plot(title: &str, unit: &str, lines: &[Line]) -> String {
    let points = || lines.iter().flat_map(|it| &it.points);
    let end = points().map(|it| it.0).fold(0.0, f64::max);
    let most = points().map(|it| it.1).filter(|it| it.is_finite()).fold(0.0, f64::max);
    if end <= 0.0 || points().count() < 2 {
        return String::new();
    }
    let most = round_up(most.max(f64::MIN_POSITIVE));
    let x = |at: f64| LEFT + at / end * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| HEIGHT - BOTTOM - value / most * (HEIGHT - BOTTOM - TOP);
    let mut svg = format!(
        "<figure><figcaption>{} <small>({})</small></figcaption>\
         <svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">",
        escape(title),
        escape(unit)
    );
    // Writing to a String cannot fail.
    for step in 0..=4 {
        let value = most * f64::from(step) / 4.0;
        let (at, text) = (y(value), short(value));
        let _ = write!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{:.0}\" y1=\"{at:.1}\" y2=\"{at:.1}\" class=\"grid\"/>\
             <text x=\"{:.0}\" y=\"{:.1}\" class=\"right\">{text}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            at + 4.0
        );
        let seconds = end * f64::from(step) / 4.0;
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.0}\" class=\"middle\">{}s</text>",
            x(seconds).min(WIDTH - 16.0),
            HEIGHT - 6.0,
            short(seconds)
        );
    }
    for (line, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
        let mut path = String::new();
        for (at, value) in line.points.iter().filter(|it| it.1.is_finite()) {
            let _ = write!(path, "{:.1},{:.1} ", x(*at), y(*value));
        }
        let _ = write!(svg, "<polyline points=\"{path}\" style=\"stroke:{colour}\"/>");
    }
    svg.push_str("</svg><p class=\"legend\">");
    for (line, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
        let name = escape(&line.name);
        let _ = write!(svg, "<span style=\"color:{colour}\">&#9632;</span> {name} ");
    }
    svg.push_str("</p></figure>");
    svg
}

/// The next number of the form 1, 2 or 5 times a power of ten.
fn round_up(value: f64) -> f64 {
    let power = 10_f64.powf(value.log10().floor());
    [1.0, 2.0, 5.0, 10.0].iter().map(|it| it * power).find(|it| value <= *it).unwrap_or(value)
}

/// A number in few letters.
pub(super) fn short(value: f64) -> String {
    let size = value.abs();
    match size {
        _ if 1e9 <= size => format!("{:.1}G", value / 1e9),
        _ if 1e6 <= size => format!("{:.1}M", value / 1e6),
        _ if 1e4 <= size => format!("{:.0}k", value / 1e3),
        _ if 100.0 <= size => format!("{value:.0}"),
        _ if 1.0 <= size => format!("{value:.1}").trim_end_matches(".0").to_owned(),
        _ if size == 0.0 => "0".to_owned(),
        _ => format!("{value:.3}"),
    }
}

/// A text as HTML shows it.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_round() {
        for (value, expected) in [(0.07, 0.1), (3.0, 5.0), (10.0, 10.0), (101.0, 200.0)] {
            assert!((round_up(value) - expected).abs() < 1e-9, "{value}");
        }
        assert_eq!([short(12_345.0), short(0.0), short(2.5)], ["12k", "0", "2.5"]);
    }

    #[test]
    fn lines_lie_within_the_plot() {
        let line = Line { name: "<a>".into(), points: vec![(0.0, 0.0), (10.0, 100.0)] };
        let svg = plot("T", "ms", &[line]);
        assert!(svg.contains("64.0,196.0 852.0,24.0"), "{svg}");
        assert!(svg.contains("&lt;a&gt;") && !svg.contains("<a>"));
        assert_eq!(plot("T", "ms", &[]), "");
    }
}
