// Text for people: aligned tables and progress bars.
//
// Pure; a Table is a value.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace bim::daemon {

// Columns as wide as their widest cell, two spaces apart; no spaces at the end
// of a line. Control characters in a cell are shown as "?", so that a message
// from elsewhere cannot move the cursor.
class Table {
 public:
  enum class Align { kLeft, kRight };
  struct Column {
    std::string title;
    Align align = Align::kLeft;
  };

  explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {}
  // Precondition: as many cells as columns. An empty cell is shown as "-".
  void AddRow(std::vector<std::string> cells);
  // Title line and rows, each ended by a newline.
  std::string Render() const;

 private:
  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
};

// The text with every control character replaced by "?".
std::string OneLine(std::string_view text);

// What a progress line shows. A value.
struct Progress {
  std::string label;
  uint64_t done_bytes = 0;
  uint64_t total_bytes = 0;  // 0: not known
  int percent = -1;  // when total_bytes is not known; -1: not known either
  double bytes_per_second = 0;
};

// One line without newline, at most `width` columns:
// "debian-12   45% [=====>      ]  0.9 GiB / 2.0 GiB  120.0 MiB/s  9s left".
// Parts are left out when they do not fit or are not known.
std::string RenderProgress(const Progress& progress, size_t width);

}  // namespace bim::daemon
