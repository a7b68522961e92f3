#include "daemon/table.h"

#include <fmt/format.h>

#include <algorithm>

#include "daemon/units.h"
#include "pkg/base/status.h"

namespace bim::daemon {
namespace {

// Columns that UTF-8 text takes: one per character, which holds for the
// scripts of names and messages here.
size_t DisplayWidth(std::string_view text) {
  return static_cast<size_t>(std::count_if(
      text.begin(), text.end(),
      [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

}  // namespace

std::string OneLine(std::string_view text) {
  std::string printable(text);
  for (char& c : printable) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7F) c = '?';
  }
  return printable;
}

void Table::AddRow(std::vector<std::string> cells) {
  BIM_CHECK(cells.size() == columns_.size());
  for (std::string& cell : cells) {
    cell = cell.empty() ? "-" : OneLine(cell);
  }
  rows_.push_back(std::move(cells));
}

std::string Table::Render() const {
  std::vector<size_t> widths;
  for (const Column& column : columns_) {
    widths.push_back(DisplayWidth(column.title));
  }
  for (const auto& row : rows_) {
    for (size_t i = 0; i < row.size(); ++i) {
      widths[i] = std::max(widths[i], DisplayWidth(row[i]));
    }
  }
  std::string out;
  auto add_cell = [&](size_t i, const std::string& text) {
    const std::string padding(widths[i] - DisplayWidth(text), ' ');
    if (i > 0) out += "  ";
    if (columns_[i].align == Align::kRight) {
      out += padding + text;
    } else {
      out += text + padding;
    }
  };
  auto end_line = [&] {
    out.erase(out.find_last_not_of(' ') + 1);
    out += '\n';
  };
  for (size_t i = 0; i < columns_.size(); ++i) add_cell(i, columns_[i].title);
  end_line();
  for (const auto& row : rows_) {
    for (size_t i = 0; i < row.size(); ++i) add_cell(i, row[i]);
    end_line();
  }
  return out;
}

std::string RenderProgress(const Progress& progress, size_t width) {
  const bool sized = progress.total_bytes > 0;
  const uint64_t done =
      sized ? std::min(progress.done_bytes, progress.total_bytes)
            : progress.done_bytes;
  // Of the whole; negative: not known.
  const double fraction = sized ? static_cast<double>(done) /
                                      static_cast<double>(progress.total_bytes)
                                : std::min(progress.percent, 100) / 100.0;
  const bool known = fraction >= 0;

  std::string head = OneLine(progress.label);
  if (known) head += fmt::format("  {:3}%", static_cast<int>(fraction * 100));
  std::string tail = "  " + HumanBytes(done);
  if (sized) tail += " / " + HumanBytes(progress.total_bytes);
  if (progress.bytes_per_second >= 1) {
    tail += fmt::format(
        "  {}/s", HumanBytes(static_cast<uint64_t>(progress.bytes_per_second)));
    if (sized && done < progress.total_bytes) {
      const double seconds = static_cast<double>(progress.total_bytes - done) /
                             progress.bytes_per_second;
      if (seconds < 100 * 3600) {
        tail += fmt::format(
            "  {} left",
            HumanDuration(std::chrono::seconds(static_cast<int64_t>(seconds))));
      }
    }
  }

  std::string line = head;
  constexpr size_t kFrame = 3;  // " [" and "]"
  const size_t fixed = DisplayWidth(head) + DisplayWidth(tail) + kFrame;
  if (known && fixed + 10 <= width) {
    const size_t bar = std::min<size_t>(width - fixed, 30);
    const auto filled =
        static_cast<size_t>(fraction * static_cast<double>(bar));
    std::string drawn(filled, '=');
    if (filled < bar) drawn += '>';
    drawn.resize(bar, ' ');
    line += " [" + drawn + "]";
  }
  if (DisplayWidth(line) + DisplayWidth(tail) <= width) line += tail;
  if (DisplayWidth(line) > width) {
    // Cut between characters.
    size_t end = 0;
    for (size_t columns = 0; end < line.size(); ++end) {
      if ((static_cast<unsigned char>(line[end]) & 0xC0) != 0x80 &&
          columns++ == width) {
        break;
      }
    }
    line.resize(end);
  }
  return line;
}

}  // namespace bim::daemon
