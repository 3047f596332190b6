//! Plots as inline SVG: lines or stacked areas over time, with axes, units and a legend. Colours come from the page's
//! style sheet, so that they follow its light or dark scheme.

use std::fmt::Write;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 78.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 34.0;
const TICKS: f64 = 5.0;

/// One line or area.
pub(super) struct Series<'a> {
    pub(super) name: &'a str,
    /// The class that gives its colour.
    pub(super) class: &'a str,
    /// At the plot's times; a line has a gap where it is not a number.
    pub(super) values: Vec<f64>,
}

/// What to draw.
pub(super) struct Plot<'a> {
    pub(super) title: &'a str,
    /// What the figures count, for the axis.
    pub(super) unit: &'a str,
    /// What to see in it, below the title.
    pub(super) note: &'a str,
    /// Seconds.
    pub(super) times: &'a [f64],
    pub(super) series: Vec<Series<'a>>,
    /// Areas on top of each other rather than lines.
    pub(super) is_stacked: bool,
    /// A moment worth a mark, and what it is.
    pub(super) mark: Option<(f64, &'a str)>,
}

impl Plot<'_> {
    /// The figure with its caption.
    pub(super) fn render(&self) -> String {
        let mut out = String::new();
        // Writing to a String can't fail.
        let _ = write!(
            out,
            "<figure><figcaption><h2>{}</h2><p>{}</p>{}</figcaption>\
             <svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
            self.title,
            self.note,
            self.legend(),
            self.title
        );
        let x_max = self.times.last().copied().unwrap_or(1.0).max(1.0);
        let y_step = nice_step(self.top());
        let y_max = (self.top() / y_step).ceil().max(1.0) * y_step;
        self.axes(&mut out, x_max, y_max, y_step);
        let x = |time: f64| LEFT + time / x_max * (WIDTH - LEFT - RIGHT);
        let y = |value: f64| HEIGHT - BOTTOM - value / y_max * (HEIGHT - TOP - BOTTOM);
        let mut below = vec![0.0; self.times.len()];
        for series in &self.series {
            let above: Vec<f64> = if self.is_stacked {
                below
                    .iter()
                    .zip(&series.values)
                    .map(|(a, b)| a + b)
                    .collect()
            } else {
                series.values.clone()
            };
            let mut path = String::new();
            let mut is_drawing = false;
            for (time, value) in self.times.iter().zip(&above) {
                // `h0` makes a point by itself visible.
                let (command, dot) = if is_drawing { ('L', "") } else { ('M', "h0") };
                is_drawing = value.is_finite();
                if is_drawing {
                    let _ = write!(path, "{command}{:.1} {:.1}{dot}", x(*time), y(*value));
                }
            }
            if self.is_stacked {
                for (time, value) in self.times.iter().zip(&below).rev() {
                    let _ = write!(path, "L{:.1} {:.1}", x(*time), y(*value));
                }
                let _ = write!(out, "<path class=\"area {}\" d=\"{path}Z\"/>", series.class);
                below = above;
            } else {
                let _ = write!(out, "<path class=\"line {}\" d=\"{path}\"/>", series.class);
            }
        }
        if let Some((time, what)) = self.mark {
            let (x, anchor) = (x(time), if time > x_max / 2.0 { "end" } else { "start" });
            let dx = if anchor == "end" { -6.0 } else { 6.0 };
            let _ = write!(
                out,
                "<line class=\"mark\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{:.1}\"/>\
                 <text class=\"marktext\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{what}</text>",
                HEIGHT - BOTTOM,
                x + dx,
                TOP + 14.0
            );
        }
        out.push_str("</svg></figure>");
        out
    }

    fn top(&self) -> f64 {
        let at = |index: usize| {
            let values = self
                .series
                .iter()
                .filter_map(|series| series.values.get(index));
            if self.is_stacked {
                values.sum()
            } else {
                values.copied().fold(0.0, f64::max)
            }
        };
        (0..self.times.len()).map(at).fold(0.0, f64::max)
    }

    fn legend(&self) -> String {
        let mut out = String::from("<ul class=\"legend\">");
        for series in &self.series {
            let _ = write!(
                out,
                "<li><span class=\"key {}\"></span>{}</li>",
                series.class, series.name
            );
        }
        out.push_str("</ul>");
        out
    }

    fn axes(&self, out: &mut String, x_max: f64, y_max: f64, y_step: f64) {
        let mut value = 0.0;
        while value <= y_max + y_step / 2.0 {
            let y = HEIGHT - BOTTOM - value / y_max * (HEIGHT - TOP - BOTTOM);
            let _ = write!(
                out,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 8.0,
                y + 4.0,
                number(value)
            );
            value += y_step;
        }
        let x_step = nice_step(x_max);
        let mut time = 0.0;
        while time <= x_max {
            let x = LEFT + time / x_max * (WIDTH - LEFT - RIGHT);
            let _ = write!(
                out,
                "<text class=\"tick\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{} s</text>",
                HEIGHT - BOTTOM + 18.0,
                number(time)
            );
            time += x_step;
        }
        let middle = f64::midpoint(HEIGHT - BOTTOM, TOP);
        let _ = write!(
            out,
            "<text class=\"unit\" transform=\"translate(13 {middle:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            self.unit
        );
    }
}

/// 1, 2 or 5 times a power of ten, so that about [`TICKS`] steps reach `top`.
fn nice_step(top: f64) -> f64 {
    if top <= 0.0 {
        return 1.0;
    }
    let rough = top / TICKS;
    let power = 10_f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .find(|factor| factor * power >= rough * 0.999);
    factor.unwrap_or(10.0) * power
}

/// With thousands apart, and decimals only where they say something.
pub(super) fn number(value: f64) -> String {
    if value.abs() < 10.0 && (value - value.round()).abs() > 1e-9 {
        let text = format!("{value:.3}");
        return text.trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    let digits = format!("{:.0}", value.abs());
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push('\u{2009}');
        }
        out.push(digit);
    }
    if value < 0.0 {
        out.insert(0, '-');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_nice_and_numbers_readable() {
        let steps = [10_000.0, 37.0, 0.9, 6.1].map(|top| number(nice_step(top)));
        assert_eq!(steps, ["2\u{2009}000", "10", "0.2", "2"]);
        assert_eq!(number(1_234_567.0), "1\u{2009}234\u{2009}567");
        assert_eq!(number(0.25), "0.25");
        assert_eq!(number(0.0), "0");
    }

    #[test]
    fn a_plot_without_samples_is_still_a_plot() {
        let plot = Plot {
            title: "Stock",
            unit: "units",
            note: "",
            times: &[],
            series: Vec::new(),
            is_stacked: true,
            mark: None,
        };
        assert!(plot.render().ends_with("</svg></figure>"));
    }
}
