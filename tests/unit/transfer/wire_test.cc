#include "pkg/transfer/wire.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <random>

#include "pkg/base/unique_fd.h"
#include "tests/unit/store/scratch.h"

namespace bim::transfer {
namespace {

using base::Code;
using base::Status;
using test::AsBytes;
using test::RandomBytes;
using test::TempDir;

// Takes what a reader hands on and lets nothing leave the part.
struct Sink {
  uint64_t room = 0;
  std::string bytes;
  std::vector<std::pair<char, uint64_t>> calls;  // 'd' or 'z'

  std::function<Status(std::span<const std::byte>)> OnData() {
    return [this](std::span<const std::byte> data) {
      EXPECT_FALSE(data.empty());
      EXPECT_LE(bytes.size() + data.size(), room);
      bytes.append(reinterpret_cast<const char*>(data.data()), data.size());
      calls.emplace_back('d', data.size());
      return base::OkStatus();
    };
  }
  std::function<Status(uint64_t)> OnZeros() {
    return [this](uint64_t count) {
      EXPECT_GT(count, 0u);
      EXPECT_LE(count, room - bytes.size());
      if (count <= room - bytes.size()) bytes.append(count, '\0');
      calls.emplace_back('z', count);
      return base::OkStatus();
    };
  }
};

struct ReadBack {
  Status status;
  Sink sink;
};

ReadBack ReadBody(uint64_t begin, uint64_t end, std::string_view body,
                  size_t piece) {
  ReadBack out;
  out.sink.room = end - begin;
  ExtentReader reader(begin, end);
  while (!body.empty() && out.status.ok()) {
    const size_t take = std::min(piece, body.size());
    out.status = reader.Feed(AsBytes(body.substr(0, take)), out.sink.OnData(),
                             out.sink.OnZeros());
    body.remove_prefix(take);
  }
  if (out.status.ok()) out.status = reader.Finish(out.sink.OnZeros());
  return out;
}

// A table without any of the product's checks.
std::string Table(uint64_t begin, uint64_t end, uint64_t count,
                  const std::vector<io::Extent>& extents,
                  const std::string& magic = "BIMEXT01") {
  std::string out = magic;
  const auto put = [&](uint64_t number) {
    for (int i = 0; i < 8; ++i) {
      out += static_cast<char>(number & 0xff);
      number >>= 8;
    }
  };
  put(begin);
  put(end);
  put(count);
  for (const io::Extent& extent : extents) {
    put(extent.begin);
    put(extent.end);
  }
  return out;
}

// A part with some extents, its content and the body that carries it.
struct Part {
  ExtentTable table;
  std::string content;
  std::string body;
};

Part SomePart(uint32_t seed, size_t longest = 400) {
  std::mt19937 random(seed);
  Part part;
  part.table.begin = random() % 3 * 4096;
  part.table.end = part.table.begin + random() % longest;
  part.content.assign(part.table.end - part.table.begin, '\0');
  for (uint64_t at = part.table.begin; at < part.table.end;) {
    at += random() % 3 * (random() % 50);  // often none: extents may touch
    if (at >= part.table.end) break;
    const uint64_t end = std::min(part.table.end, at + 1 + random() % 60);
    part.table.data.push_back({at, end});
    const std::string data = RandomBytes(end - at, random());
    part.content.replace(at - part.table.begin, data.size(), data);
    part.body += data;
    at = end;
  }
  part.body.insert(0, EncodeExtentTable(part.table));
  return part;
}

TEST(ExtentTableTest, Layout) {
  EXPECT_EQ(EncodeExtentTable({0x1020, 0x0102030405060708, {{0x1030, 0x1040}}}),
            Table(0x1020, 0x0102030405060708, 1, {{0x1030, 0x1040}}));
  EXPECT_EQ(EncodeExtentTable({0, 512, {}}), Table(0, 512, 0, {}));
  EXPECT_EQ(EncodeExtentTable({0, 512, {}}).size(), 32u);
}

TEST(ExtentReaderTest, RoundTripsInPieces) {
  for (uint32_t seed = 0; seed < 300; ++seed) {
    const Part part = SomePart(seed);
    for (size_t piece : {1, 2, 7, 16, 31, 32, 33, 48, 100, 1'000'000}) {
      const ReadBack read =
          ReadBody(part.table.begin, part.table.end, part.body, piece);
      BIM_ASSERT_OK(read.status);
      ASSERT_EQ(read.sink.bytes, part.content) << seed << " " << piece;
    }
  }
}

TEST(ExtentReaderTest, EmptyPiecesDoNothing) {
  const Part part = SomePart(3);
  Sink sink{.room = part.content.size()};
  ExtentReader reader(part.table.begin, part.table.end);
  for (char c : part.body) {
    BIM_EXPECT_OK(reader.Feed({}, sink.OnData(), sink.OnZeros()));
    BIM_EXPECT_OK(reader.Feed(AsBytes({&c, 1}), sink.OnData(), sink.OnZeros()));
  }
  BIM_EXPECT_OK(reader.Feed({}, sink.OnData(), sink.OnZeros()));
  BIM_EXPECT_OK(reader.Finish(sink.OnZeros()));
  BIM_EXPECT_OK(reader.Finish(sink.OnZeros()));
  EXPECT_EQ(sink.bytes, part.content);
}

TEST(ExtentReaderTest, HolesAreHandedOnWhole) {
  const std::string table = Table(100, 10'000'000'000, 2,
                                  {{200, 203}, {5'000'000'000, 5'000'000'001}});
  std::vector<std::pair<char, uint64_t>> calls;
  ExtentReader reader(100, 10'000'000'000);
  const auto on_data = [&](std::span<const std::byte> data) {
    calls.emplace_back('d', data.size());
    return base::OkStatus();
  };
  const auto on_zeros = [&](uint64_t count) {
    calls.emplace_back('z', count);
    return base::OkStatus();
  };
  BIM_EXPECT_OK(reader.Feed(AsBytes(table + "abcd"), on_data, on_zeros));
  BIM_EXPECT_OK(reader.Finish(on_zeros));
  EXPECT_EQ(calls,
            (std::vector<std::pair<char, uint64_t>>{{'z', 100},
                                                    {'d', 3},
                                                    {'z', 4'999'999'797},
                                                    {'d', 1},
                                                    {'z', 4'999'999'999}}));
}

TEST(ExtentReaderTest, NothingButHole) {
  const ReadBack read = ReadBody(512, 4096, Table(512, 4096, 0, {}), 5);
  BIM_EXPECT_OK(read.status);
  EXPECT_EQ(read.sink.bytes, std::string(4096 - 512, '\0'));
  EXPECT_EQ(read.sink.calls.size(), 1u);
  // A part of no bytes.
  BIM_EXPECT_OK(ReadBody(512, 512, Table(512, 512, 0, {}), 5).status);
}

TEST(ExtentReaderTest, MostExtents) {
  std::vector<io::Extent> extents;
  std::string data, content;
  for (uint64_t i = 0; i < kMaxExtents; ++i) {
    extents.push_back({2 * i, 2 * i + 1});
    data += static_cast<char>('a' + i % 26);
    content += data.back();
    content += '\0';
  }
  const uint64_t end = 2 * kMaxExtents;
  for (size_t piece : {size_t{1}, size_t{1000}, size_t{1} << 20}) {
    const ReadBack read =
        ReadBody(0, end, Table(0, end, kMaxExtents, extents) + data, piece);
    BIM_EXPECT_OK(read.status);
    EXPECT_EQ(read.sink.bytes, content);
  }
}

TEST(ExtentReaderTest, CutOffAtEveryByte) {
  for (uint32_t seed = 0; seed < 40; ++seed) {
    const Part part = SomePart(seed);
    for (size_t length = 0; length < part.body.size(); ++length) {
      const ReadBack read =
          ReadBody(part.table.begin, part.table.end,
                   std::string_view(part.body).substr(0, length), 1 + seed);
      ASSERT_EQ(read.status.code(), Code::kDataLoss) << seed << " " << length;
      ASSERT_TRUE(part.content.starts_with(read.sink.bytes));
    }
  }
}

TEST(ExtentReaderTest, LongerThanItsExtents) {
  for (uint32_t seed = 0; seed < 40; ++seed) {
    const Part part = SomePart(seed);
    for (const std::string& more : {std::string(1, '\0'), part.body}) {
      for (size_t piece : {1, 3, 1'000'000}) {
        EXPECT_EQ(
            ReadBody(part.table.begin, part.table.end, part.body + more, piece)
                .status.code(),
            Code::kDataLoss);
      }
    }
  }
}

TEST(ExtentReaderTest, HostileTables) {
  constexpr uint64_t kTop = ~uint64_t{0};
  struct Case {
    const char* what;
    std::string body;
  };
  const std::vector<Case> cases = {
      {"another magic", Table(1000, 2000, 0, {}, "BIMEXT02")},
      {"no magic", std::string(200, '\0')},
      {"text", std::string(200, 'x')},
      {"another begin", Table(999, 2000, 0, {})},
      {"another end", Table(1000, 2001, 0, {})},
      {"turned around", Table(2000, 1000, 0, {})},
      {"too many", Table(1000, 2000, kMaxExtents + 1, {})},
      {"far too many", Table(1000, 2000, kTop, {})},
      {"a count that overflows", Table(1000, 2000, uint64_t{1} << 60, {})},
      {"before the part", Table(1000, 2000, 1, {{999, 1001}})},
      {"behind the part", Table(1000, 2000, 1, {{1999, 2001}})},
      {"outside, before", Table(1000, 2000, 1, {{0, 10}})},
      {"outside, behind", Table(1000, 2000, 1, {{2000, 2001}})},
      {"far outside", Table(1000, 2000, 1, {{1000, kTop}})},
      {"at the top", Table(1000, 2000, 1, {{kTop - 1, kTop}})},
      {"empty", Table(1000, 2000, 1, {{1500, 1500}})},
      {"negative", Table(1000, 2000, 1, {{1500, 1400}})},
      {"wrapped around", Table(1000, 2000, 1, {{kTop, 1400}})},
      {"unordered", Table(1000, 2000, 2, {{1500, 1600}, {1100, 1200}})},
      {"overlapping", Table(1000, 2000, 2, {{1100, 1200}, {1199, 1300}})},
      {"twice", Table(1000, 2000, 2, {{1100, 1200}, {1100, 1200}})},
      {"one bad at the end",
       Table(1000, 2000, 3, {{1100, 1200}, {1200, 1300}, {1900, 2001}})},
  };
  for (const Case& hostile : cases) {
    for (size_t piece : {1, 31, 32, 33, 1000}) {
      SCOPED_TRACE(hostile.what);
      const ReadBack read =
          ReadBody(1000, 2000, hostile.body + std::string(1100, 'x'), piece);
      EXPECT_EQ(read.status.code(), Code::kDataLoss) << read.status.ToString();
      EXPECT_EQ(read.sink.bytes, "");
    }
  }
}

TEST(ExtentReaderTest, EveryFlippedBitOfTheTableIsRefusedOrInBounds) {
  for (uint32_t seed = 0; seed < 10; ++seed) {
    const Part part = SomePart(seed);
    const size_t table = 32 + part.table.data.size() * 16;
    for (size_t at = 0; at < table; ++at) {
      for (int bit = 0; bit < 8; ++bit) {
        std::string flipped = part.body;
        flipped[at] = static_cast<char>(flipped[at] ^ (1 << bit));
        // The sink checks the bounds.
        const ReadBack read =
            ReadBody(part.table.begin, part.table.end, flipped, 64);
        if (!read.status.ok()) {
          ASSERT_EQ(read.status.code(), Code::kDataLoss);
        } else {
          ASSERT_EQ(read.sink.bytes.size(), part.content.size());
          ASSERT_GE(at, 32u);
        }
      }
    }
  }
}

TEST(ExtentReaderTest, FailuresOfTheCallbacksComeBack) {
  const std::string body = Table(0, 30, 1, {{10, 20}}) + std::string(10, 'x');
  const Status full = base::ResourceExhaustedError("disk full");
  const auto fine = [](auto) { return base::OkStatus(); };
  const auto fails = [&](auto) { return full; };
  EXPECT_EQ(ExtentReader(0, 30).Feed(AsBytes(body), fails, fine), full);
  EXPECT_EQ(ExtentReader(0, 30).Feed(AsBytes(body), fine, fails), full);
  ExtentReader reader(0, 30);
  BIM_EXPECT_OK(reader.Feed(AsBytes(body), fine, fine));
  EXPECT_EQ(reader.Finish(fails), full);
}

// --- real files

class MapExtentsTest : public ::testing::TestWithParam<bool> {
 protected:
  // Data of 4 KiB at these blocks, holes elsewhere.
  void Make(uint64_t size, const std::vector<uint64_t>& blocks) {
    fd_ = base::UniqueFd(
        ::open((dir_ / "file").c_str(), O_RDWR | O_CREAT | O_TRUNC, 0600));
    ASSERT_GE(fd_.get(), 0);
    ASSERT_EQ(::ftruncate(fd_.get(), static_cast<off_t>(size)), 0);
    content_.assign(size, '\0');
    for (uint64_t block : blocks) {
      const std::string data =
          RandomBytes(std::min<uint64_t>(4096, size - block * 4096), block + 1);
      ASSERT_EQ(::pwrite(fd_.get(), data.data(), data.size(),
                         static_cast<off_t>(block * 4096)),
                static_cast<ssize_t>(data.size()));
      content_.replace(block * 4096, data.size(), data);
    }
  }
  // Maps, encodes, reads back.
  void ExpectTravels(uint64_t begin, uint64_t end, size_t piece = 10'000) {
    const auto table = MapExtents(fd_.get(), begin, end);
    ASSERT_TRUE(table.ok()) << table.status().ToString();
    EXPECT_EQ(table->begin, begin);
    EXPECT_EQ(table->end, end);
    EXPECT_LE(table->data.size(), kMaxExtents);
    std::string body = EncodeExtentTable(*table);
    for (const io::Extent& extent : table->data) {
      body += content_.substr(extent.begin, extent.end - extent.begin);
    }
    const ReadBack read = ReadBody(begin, end, body, piece);
    BIM_ASSERT_OK(read.status);
    ASSERT_TRUE(read.sink.bytes == content_.substr(begin, end - begin))
        << begin << " " << end;
  }
  // Blocks may be larger than 4 KiB: then less is a hole.
  uint64_t DataBytes(uint64_t begin, uint64_t end) {
    const auto table = MapExtents(fd_.get(), begin, end);
    uint64_t sum = 0;
    for (const io::Extent& extent : table->data)
      sum += extent.end - extent.begin;
    return sum;
  }

  TempDir dir_{GetParam()};
  base::UniqueFd fd_;
  std::string content_;
};

INSTANTIATE_TEST_SUITE_P(Where, MapExtentsTest, ::testing::Bool(),
                         [](const auto& info) {
                           return info.param ? "OnDisk" : "InMemory";
                         });

TEST_P(MapExtentsTest, SparseFiles) {
  std::mt19937 random(1);
  for (int round = 0; round < 20; ++round) {
    std::vector<uint64_t> blocks;
    for (uint64_t block = 0; block < 64; ++block) {
      if (random() % 3 == 0) blocks.push_back(block);
    }
    Make(64 * 4096 - random() % 8 * 512, blocks);
    ExpectTravels(0, content_.size());
    ExpectTravels(0, content_.size(), 1);
    for (int part = 0; part < 20; ++part) {
      const uint64_t begin = random() % content_.size();
      const uint64_t end = begin + random() % (content_.size() - begin + 1);
      ExpectTravels(begin, end);
    }
  }
}

TEST_P(MapExtentsTest, HolesAreFound) {
  Make(256 << 20, {0, 30'000, 65'535});
  EXPECT_LE(DataBytes(0, 256 << 20), uint64_t{1} << 20);
  EXPECT_EQ(MapExtents(fd_.get(), 0, 256 << 20)->data.size(), 3u);
  EXPECT_EQ(DataBytes(130 << 20, 200 << 20), 0u);
  // Only the part is looked at, and an extent is cut to it.
  const auto table = MapExtents(fd_.get(), 1000, 3000);
  ASSERT_EQ(table->data.size(), 1u);
  EXPECT_EQ(table->data[0].begin, 1000u);
  EXPECT_EQ(table->data[0].end, 3000u);
}

TEST_P(MapExtentsTest, AllDataAndNoData) {
  Make(1 << 20, {});
  EXPECT_EQ(MapExtents(fd_.get(), 0, 1 << 20)->data.size(), 0u);
  ExpectTravels(0, 1 << 20);
  std::vector<uint64_t> all(256);
  for (uint64_t i = 0; i < 256; ++i) all[i] = i;
  Make(1 << 20, all);
  EXPECT_EQ(MapExtents(fd_.get(), 0, 1 << 20)->data.size(), 1u);
  ExpectTravels(0, 1 << 20);
  ExpectTravels(513, 700'001);
  ExpectTravels(5000, 5000);
}

TEST_P(MapExtentsTest, TooManyAreJoined) {
  std::vector<uint64_t> every_other;
  for (uint64_t i = 0; i < kMaxExtents + 50; ++i) every_other.push_back(2 * i);
  Make((2 * kMaxExtents + 200) * 4096, every_other);
  ExpectTravels(0, content_.size(), 1 << 20);
  ExpectTravels(4096, content_.size() - 4096, 1 << 20);
}

TEST_P(MapExtentsTest, BehindTheEndIsNoData) {
  Make(10'000, {0, 1, 2});
  const auto table = MapExtents(fd_.get(), 0, 1 << 20);
  ASSERT_TRUE(table.ok());
  for (const io::Extent& extent : table->data) EXPECT_LE(extent.end, 10'000u);
  EXPECT_EQ(DataBytes(20'000, 30'000), 0u);
}

TEST_P(MapExtentsTest, NoFile) { EXPECT_FALSE(MapExtents(-1, 0, 100).ok()); }

}  // namespace
}  // namespace bim::transfer
