#include "pkg/http/range.h"

#include <gtest/gtest.h>

#include <ostream>

namespace bim::http {

void PrintTo(const ByteRange& range, std::ostream* out) {
  *out << static_cast<int>(range.kind) << " [" << range.begin << ", "
       << range.end << ")";
}

namespace {

constexpr ByteRange kWhole;
constexpr ByteRange kUnsatisfiable{ByteRange::Kind::kUnsatisfiable, 0, 0};
constexpr ByteRange Part(uint64_t begin, uint64_t end) {
  return {ByteRange::Kind::kPart, begin, end};
}

TEST(SelectRange, Parts) {
  EXPECT_EQ(SelectRange("bytes=0-0", 10), Part(0, 1));
  EXPECT_EQ(SelectRange("bytes=0-9", 10), Part(0, 10));
  EXPECT_EQ(SelectRange("bytes=3-5", 10), Part(3, 6));
  EXPECT_EQ(SelectRange("bytes=3-99", 10), Part(3, 10));
  EXPECT_EQ(SelectRange("bytes=9-", 10), Part(9, 10));
  EXPECT_EQ(SelectRange("bytes=0-", 10), Part(0, 10));
  EXPECT_EQ(SelectRange("bytes=-1", 10), Part(9, 10));
  EXPECT_EQ(SelectRange("bytes=-10", 10), Part(0, 10));
  EXPECT_EQ(SelectRange("bytes=-11", 10), Part(0, 10));
  EXPECT_EQ(SelectRange("BYTES=1-1", 10), Part(1, 2));
  EXPECT_EQ(SelectRange("bytes=1-99999999999999999999999", 10), Part(1, 10));
  EXPECT_EQ(SelectRange("bytes=-99999999999999999999999", 10), Part(0, 10));
}

TEST(SelectRange, Unsatisfiable) {
  for (const char* header : {"bytes=10-", "bytes=10-10", "bytes=11-20",
                             "bytes=-0", "bytes=99999999999999999999999-"})
    EXPECT_EQ(SelectRange(header, 10), kUnsatisfiable) << header;
  for (const char* header : {"bytes=0-", "bytes=0-0", "bytes=-5"})
    EXPECT_EQ(SelectRange(header, 0), kUnsatisfiable) << header;
}

TEST(SelectRange, IgnoredOnes) {
  for (const char* header : {"",           "bytes",       "bytes=",
                             "bytes=-",    "bytes=5",     "bytes=5-3",
                             "bytes=a-b",  "bytes=1-b",   "bytes=0-1,3-4",
                             "bytes=0-1,", "bytes= 0-1",  "bytes=0 -1",
                             "bytes =0-1", " bytes=0-1",  "bytes=0-1 ",
                             "items=0-1",  "bytes=--1",   "bytes=+0-1",
                             "bytes=0-+1", "bytes=0x1-2", "bytes=1-2-3",
                             "bytes:0-1"}) {
    EXPECT_EQ(SelectRange(header, 10), kWhole) << header;
  }
}

}  // namespace
}  // namespace bim::http
