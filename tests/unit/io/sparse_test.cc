#include "pkg/io/sparse.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <random>
#include <string>

#include "pkg/base/unique_fd.h"
#include "pkg/io/dir.h"

namespace bim::io {
namespace {

// Aligned, as O_DIRECT wants it.
class Buffer {
 public:
  explicit Buffer(size_t size) : size_(size) {
    BIM_CHECK(::posix_memalign(&data_, 4096, size + 4096) == 0);
    std::memset(data_, 0, size + 4096);
  }
  ~Buffer() { ::free(data_); }
  Buffer(const Buffer&) = delete;
  char* data() { return static_cast<char*>(data_); }
  std::span<const std::byte> Bytes(size_t from, size_t count) {
    return std::as_bytes(std::span(data() + from, count));
  }
  size_t size() const { return size_; }

 private:
  void* data_ = nullptr;
  size_t size_;
};

class SparseTest : public ::testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    path_ = std::filesystem::temp_directory_path() / "bim-test-XXXXXX";
    fd_ = base::UniqueFd(::mkostemp(path_.data(), O_CLOEXEC));
    ASSERT_TRUE(fd_);
    file_.fd = fd_.get();
    if (GetParam()) {
      direct_ = base::UniqueFd(
          ::open(path_.c_str(), O_WRONLY | O_CLOEXEC | O_DIRECT));
      if (!direct_) GTEST_SKIP() << "no O_DIRECT here";
      file_.direct_fd = direct_.get();
    }
  }
  void TearDown() override { ::unlink(path_.c_str()); }
  std::string Content(size_t size) {
    std::string out(size, '?');
    const auto count = PreadFull(fd_.get(), out.data(), size, 0, "x");
    EXPECT_TRUE(count.ok());
    out.resize(*count);
    return out;
  }
  uint64_t Allocated() {
    struct stat st = {};
    EXPECT_EQ(::fstat(fd_.get(), &st), 0);
    return static_cast<uint64_t>(st.st_blocks) * 512;
  }
  std::string path_;
  base::UniqueFd fd_, direct_;
  SparseFile file_;
};

TEST(IsZeroTest, OneByteAnywhere) {
  for (size_t size : {0, 1, 2, 15, 16, 17, 31, 4095, 4096, 4097}) {
    std::string text(size, '\0');
    const auto zero = [&] {
      return IsZero(std::as_bytes(std::span(text.data(), text.size())));
    };
    EXPECT_TRUE(zero());
    for (size_t at = 0; at < size; ++at) {
      text[at] = at % 2 == 0 ? 1 : static_cast<char>(0x80);
      EXPECT_FALSE(zero()) << size << " " << at;
      text[at] = 0;
    }
  }
}

TEST_P(SparseTest, RandomWritesReadBack) {
  for (uint32_t seed = 0; seed < 40; ++seed) {
    std::mt19937 random(seed);
    constexpr size_t kSize = 300'000;
    ASSERT_EQ(::ftruncate(fd_.get(), 0), 0);
    ASSERT_EQ(::ftruncate(fd_.get(), kSize), 0);
    std::string expected(kSize, '\0');
    Buffer buffer(kSize);
    for (int i = 0; i < 30; ++i) {
      // Data and zeros, on the edges of blocks and off them.
      const auto edge = [&](size_t limit) {
        size_t at = random() % (limit + 1);
        return random() % 2 == 0 ? at / 4096 * 4096 : at;
      };
      const size_t offset = edge(kSize);
      const size_t size = edge(std::min<size_t>(kSize - offset, 60'000));
      std::memset(buffer.data(), 0, buffer.size());
      for (size_t at = 0; at < size;) {
        const size_t run = std::min<size_t>(size - at, 1 + edge(12'000));
        if (random() % 2 == 0) {
          for (size_t j = 0; j < run; ++j) {
            buffer.data()[at + j] = static_cast<char>(random());
          }
        }
        at += run;
      }
      const auto status =
          WriteSparse(file_, buffer.Bytes(0, size), offset, true);
      ASSERT_TRUE(status.ok()) << status.ToString();
      expected.replace(offset, size, buffer.data(), size);
    }
    ASSERT_TRUE(Content(kSize) == expected) << seed;
    // What NextData leaves out is zeros, and all of it is walked.
    for (uint64_t at = 0; at < kSize;) {
      const auto data = NextData(fd_.get(), at, kSize);
      ASSERT_TRUE(data.ok());
      ASSERT_GE(data->begin, at);
      ASSERT_LE(data->begin, data->end);
      ASSERT_LE(data->end, kSize);
      ASSERT_TRUE(IsZero(
          std::as_bytes(std::span(expected.data() + at, data->begin - at))))
          << seed;
      ASSERT_TRUE(data->begin == kSize || data->end > data->begin);
      at = data->begin == kSize ? kSize : data->end;
    }
  }
}

TEST_P(SparseTest, ZerosUseNoSpace) {
  constexpr size_t kSize = 1 << 20;
  ASSERT_EQ(::ftruncate(fd_.get(), kSize), 0);
  Buffer buffer(kSize);
  ASSERT_TRUE(WriteSparse(file_, buffer.Bytes(0, kSize), 0, false).ok());
  EXPECT_EQ(Allocated(), 0u);
  buffer.data()[500'000] = 1;
  ASSERT_TRUE(WriteSparse(file_, buffer.Bytes(0, kSize), 0, false).ok());
  EXPECT_LE(Allocated(), 64u * 1024);
  EXPECT_EQ(Content(kSize)[500'000], 1);
  buffer.data()[500'000] = 0;
  ASSERT_TRUE(WriteSparse(file_, buffer.Bytes(0, kSize), 0, true).ok());
  EXPECT_EQ(Allocated(), 0u);
  EXPECT_TRUE(Content(kSize) == std::string(kSize, '\0'));
}

TEST_P(SparseTest, NextDataAtTheEdges) {
  ASSERT_EQ(::ftruncate(fd_.get(), 1 << 20), 0);
  const auto at = [&](uint64_t offset, uint64_t size) {
    const auto data = NextData(fd_.get(), offset, size);
    EXPECT_TRUE(data.ok());
    return std::make_pair(data->begin, data->end);
  };
  using Pair = std::pair<uint64_t, uint64_t>;
  EXPECT_EQ(at(0, 1 << 20), (Pair{1 << 20, 1 << 20}));
  EXPECT_EQ(at(0, 0), (Pair{0, 0}));
  EXPECT_EQ(at(5, 5), (Pair{5, 5}));
  EXPECT_EQ(at(9, 5), (Pair{5, 5}));
  Buffer buffer(4096);
  buffer.data()[0] = 1;
  ASSERT_TRUE(
      WriteSparse(file_, buffer.Bytes(0, 4096), 512 * 1024, false).ok());
  EXPECT_EQ(at(0, 1 << 20).first, 512u * 1024);
  EXPECT_EQ(at(512 * 1024 + 1, 1 << 20).first, 512u * 1024 + 1);
  EXPECT_EQ(at(0, 512 * 1024 + 7), (Pair{512 * 1024, 512 * 1024 + 7}));
  EXPECT_EQ(at(0, 512 * 1024), (Pair{512 * 1024, 512 * 1024}));
}

TEST_P(SparseTest, AFailureIsTold) {
  base::UniqueFd read_only(::open(path_.c_str(), O_RDONLY | O_CLOEXEC));
  SparseFile file{read_only.get(), -1};
  Buffer buffer(4096);
  buffer.data()[0] = 1;
  EXPECT_FALSE(WriteSparse(file, buffer.Bytes(0, 4096), 0, false).ok());
}

INSTANTIATE_TEST_SUITE_P(Ways, SparseTest, ::testing::Bool());

}  // namespace
}  // namespace bim::io
