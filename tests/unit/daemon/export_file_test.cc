// Exports from a server that gives one answer.
#include "daemon/export_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <thread>

#include "pkg/api/listener.h"
#include "pkg/compress/encoder.h"
#include "pkg/hash/hasher.h"
#include "tests/unit/bytes.h"

namespace bim::daemon {
namespace {

class ExportTest : public testing::Test {
 protected:
  ExportTest() {
    char name[] = "/tmp/bim-export-XXXXXX";
    directory_ = mkdtemp(name);
    image_ = std::string(300'000, 'i') + std::string(100'000, '\0');
    const auto encoder = compress::MakeZstdEncoder(1);
    EXPECT_TRUE(encoder->Feed(std::as_bytes(std::span(image_)), encoded_).ok());
    EXPECT_TRUE(encoder->Finish(encoded_).ok());
  }
  ~ExportTest() override { std::filesystem::remove_all(directory_); }

  std::string file() const { return directory_ + "/out"; }

  // Exports what a server answers with this body.
  base::Status Run(const std::string& body, const std::string& type,
                   bool zstd) {
    const auto listener = api::Listen("127.0.0.1:0");
    EXPECT_TRUE(listener.ok());
    const int flags = fcntl(listener->fd.get(), F_GETFL);
    fcntl(listener->fd.get(), F_SETFL, flags & ~O_NONBLOCK);
    const std::jthread server([&] {
      const base::UniqueFd client(accept(listener->fd.get(), nullptr, nullptr));
      std::string head;
      char c;
      while (!head.ends_with("\r\n\r\n") && read(client.get(), &c, 1) == 1) {
        head += c;
      }
      char length[16];
      snprintf(length, sizeof(length), "%zx", body.size());
      const std::string answer = "HTTP/1.1 200 OK\r\nContent-Type: " + type +
                                 "\r\nTransfer-Encoding: chunked\r\n\r\n" +
                                 length + "\r\n" + body + "\r\n0\r\n\r\n";
      (void)send(client.get(), answer.data(), answer.size(), MSG_NOSIGNAL);
    });
    hash::Hasher hasher(base::DigestAlgorithm::kSha512);
    hasher.Update(std::as_bytes(std::span(image_)));
    return Export(
        {.url = "http://" + listener->address + "/x", .proxy = "none"},
        hasher.Finish(), image_.size(), {.file = file(), .zstd = zstd},
        [this](uint64_t bytes) { progress_ = bytes; }, {});
  }
  std::string Written() const { return test::ReadAll(file()); }
  bool Left() const {
    return std::filesystem::exists(file()) ||
           std::filesystem::exists(file() + ".part");
  }

  std::string directory_, image_, encoded_;
  uint64_t progress_ = 0;
};

TEST_F(ExportTest, WritesTheImage) {
  EXPECT_EQ(Run(image_, "application/octet-stream", false), base::OkStatus());
  EXPECT_EQ(Written(), image_);
}

TEST_F(ExportTest, WritesTheFrameAndProvesWhatIsInIt) {
  EXPECT_EQ(Run(encoded_, "application/zstd", true), base::OkStatus());
  EXPECT_EQ(Written(), encoded_);
  EXPECT_EQ(progress_, image_.size());
}

TEST_F(ExportTest, LeavesNothingWrongBehind) {
  const auto code = [&](const std::string& body, const std::string& type) {
    const base::Code found = Run(body, type, true).code();
    EXPECT_FALSE(Left());
    return found;
  };
  EXPECT_EQ(code(encoded_.substr(0, encoded_.size() - 1), "application/zstd"),
            base::Code::kDataLoss);
  EXPECT_EQ(code(image_, "application/zstd"), base::Code::kDataLoss);
  EXPECT_EQ(code(image_, "application/octet-stream"),
            base::Code::kFailedPrecondition);
  image_ += '\1';  // what is expected
  EXPECT_EQ(code(encoded_, "application/zstd"), base::Code::kDataLoss);
  image_.resize(1'000);
  EXPECT_EQ(code(encoded_, "application/zstd"), base::Code::kDataLoss);
}

}  // namespace
}  // namespace bim::daemon
