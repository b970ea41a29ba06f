//! The medians as bars, for the README.

use std::io::{Error, Result};
use std::path::Path;

use plotters::prelude::*;

use crate::record::{Middle, Table, is_floor};

const ROW_PX: u32 = 22;
const WIDTH_PX: u32 = 900;
/// Room for names.
const NAMES_PX: u32 = 380;

/// One bar for each contender in each setting, seconds.
pub(crate) fn draw(table: &Table, path: &Path) -> Result<()> {
    let middles = table.middles();
    let mut settings: Vec<String> = middles.iter().map(|m| m.setting.clone()).collect();
    settings.dedup();
    let heights = |setting: &String| {
        let bars = middles.iter().filter(|m| &m.setting == setting).count();
        u32::try_from(bars).map_or(0, |bars| (bars + 3) * ROW_PX)
    };
    let height = settings.iter().map(heights).sum();
    let area = SVGBackend::new(path, (WIDTH_PX, height)).into_drawing_area();
    let drawn = (|| {
        area.fill(&WHITE)?;
        let mut rest = area.clone();
        for setting in &settings {
            let (part, below) = rest.split_vertically(heights(setting));
            let of_setting = middles.iter().filter(|m| &m.setting == setting).cloned();
            bars(&part, setting, &of_setting.collect::<Vec<_>>())?;
            rest = below;
        }
        area.present()
    })();
    drawn.map_err(|error| Error::other(error.to_string()))?;
    println!("drawn: {}", path.display());
    Ok(())
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Drawn<'a> =
    std::result::Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

fn bars<'a>(area: &Area<'a>, setting: &str, middles: &[Middle]) -> Drawn<'a> {
    let most = middles.iter().map(|m| m.seconds).fold(0.0, f64::max);
    let room = f64::from(WIDTH_PX - NAMES_PX - 80);
    let text = ("sans-serif", 14).into_font();
    area.draw_text(
        setting,
        &text.clone().style(FontStyle::Bold).color(&BLACK),
        (8, 6),
    )?;
    for (row, middle) in middles.iter().enumerate() {
        let top = i32::try_from(row + 1).unwrap_or(0) * ROW_PX.cast_signed() + 8;
        #[allow(clippy::cast_possible_truncation, reason = "pixels of a chart")]
        let len = (middle.seconds / most * room) as i32;
        let left = NAMES_PX.cast_signed();
        let colour = match middle.contender.as_str() {
            name if is_floor(name) => RGBColor(150, 150, 150),
            name if name.starts_with("failback") => RGBColor(30, 110, 190),
            _ => RGBColor(220, 140, 50),
        };
        let bar = [(left, top), (left + len.max(1), top + 15)];
        area.draw(&Rectangle::new(bar, colour.filled()))?;
        let style = text.color(&BLACK);
        area.draw_text(&middle.contender, &style, (16, top))?;
        area.draw_text(
            &format!("{:.2} s", middle.seconds),
            &style,
            (left + len + 6, top),
        )?;
    }
    Ok(())
}
