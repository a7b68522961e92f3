#include "pkg/transfer/source.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/store/scratch.h"

namespace bim::transfer {
namespace {

using base::Code;
using test::RandomBytes;
using test::TempDir;
using test::WriteAll;
using ::testing::HasSubstr;

constexpr uint64_t kMiB = 1024 * 1024;

class Collect : public SourceSink {
 public:
  base::Status OnHead(const SourceHead& got) override {
    ++heads;
    head = got;
    content.assign(head.offset, '?');
    return head_answer;
  }
  base::Status OnData(std::span<const std::byte> data) override {
    content.append(reinterpret_cast<const char*>(data.data()), data.size());
    data_bytes += data.size();
    if (on_data) on_data();
    return data_answer;
  }
  base::Status OnZeros(uint64_t count) override {
    content.append(count, '\0');
    return data_answer;
  }
  SourceHead head;
  int heads = 0;
  std::string content;
  uint64_t data_bytes = 0;
  base::Status head_answer, data_answer;
  std::function<void()> on_data;
};

Options FileAllowed(std::vector<std::string> roots = {}) {
  Options options;
  options.allow_file = true;
  options.file_roots = std::move(roots);
  return options;
}

TEST(CheckSourceUrlTest, Schemes) {
  const Options none;
  BIM_EXPECT_OK(CheckSourceUrl("http://x/a", none));
  BIM_EXPECT_OK(CheckSourceUrl("https://x:8443/a?b=c", none));
  for (const char* url : {"", "x", "/etc/passwd", "ftp://x/a", "gopher://x",
                          "http://", "http://user:secret@x/a"}) {
    EXPECT_EQ(CheckSourceUrl(url, FileAllowed()).code(), Code::kInvalidArgument)
        << url;
  }
  EXPECT_EQ(CheckSourceUrl("file:///a", none).code(), Code::kPermissionDenied);
  EXPECT_EQ(CheckSourceUrl("FILE:///a", none).code(), Code::kPermissionDenied);
  BIM_EXPECT_OK(CheckSourceUrl("file:///a", FileAllowed()));
  BIM_EXPECT_OK(CheckSourceUrl("FiLe:///a", FileAllowed()));
}

TEST(CheckSourceUrlTest, FileForms) {
  const Options any = FileAllowed();
  BIM_EXPECT_OK(CheckSourceUrl("file://localhost/a", any));
  BIM_EXPECT_OK(CheckSourceUrl("file:///a%20b", any));
  BIM_EXPECT_OK(CheckSourceUrl("file:///a..b/..c", any));
  for (const char* url :
       {"file://", "file://a", "file://host/a", "file:///../a", "file:///a/..",
        "file:///a/../b", "file:///a/%2e%2e/b", "file:///a/%2E./b",
        "file:///a%", "file:///a%2", "file:///a%zz", "file:///a%00b",
        "file:///a%+1", "file:///a% 1", "file:///a%-1", "file:///a%0x"}) {
    EXPECT_EQ(CheckSourceUrl(url, any).code(), Code::kInvalidArgument) << url;
  }
}

TEST(CheckSourceUrlTest, Roots) {
  const Options rooted = FileAllowed({"/srv/images", "/mnt/"});
  BIM_EXPECT_OK(CheckSourceUrl("file:///srv/images/a", rooted));
  BIM_EXPECT_OK(CheckSourceUrl("file:///mnt/a/b", rooted));
  BIM_EXPECT_OK(CheckSourceUrl("file:///%73rv/images/a", rooted));
  for (const char* url :
       {"file:///srv/imagesx/a", "file:///srv/images", "file:///etc/passwd",
        "file:///srv", "file:///mntx"}) {
    EXPECT_EQ(CheckSourceUrl(url, rooted).code(), Code::kPermissionDenied)
        << url;
  }
}

class FileSourceTest : public ::testing::Test {
 protected:
  Outcome Read(SourceSink& sink, uint64_t offset = 0,
               const std::string& validator = "", std::stop_token stop = {}) {
    auto source = MakeUrlSource("file://" + path_, "", options_);
    if (!source.ok()) {
      ADD_FAILURE() << source.status().ToString();
      return {};
    }
    return (*source)->Read({offset, Range::kOpen}, validator, sink, stop);
  }
  TempDir dir_;
  std::string path_ = dir_ / "a.raw";
  Options options_ = FileAllowed();
};

TEST_F(FileSourceTest, Whole) {
  const std::string content = RandomBytes(3 * kMiB + 5, 1);
  WriteAll(path_, content);
  Collect sink;
  const Outcome outcome = Read(sink);
  EXPECT_EQ(outcome.failure, Failure::kNone) << outcome.status.ToString();
  EXPECT_EQ(sink.heads, 1);
  EXPECT_EQ(sink.head.size, content.size());
  EXPECT_EQ(sink.head.offset, 0u);
  EXPECT_NE(sink.head.validator, "");
  EXPECT_TRUE(sink.content == content);
}

TEST_F(FileSourceTest, HolesStayHoles) {
  base::UniqueFd fd(::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
  const std::string data = RandomBytes(64 * 1024, 1);
  BIM_ASSERT_OK(io::PwriteAll(fd.get(), data, 32 * kMiB, "x"));
  ASSERT_EQ(::ftruncate(fd.get(), 64 * kMiB), 0);
  Collect sink;
  EXPECT_EQ(Read(sink).failure, Failure::kNone);
  ASSERT_EQ(sink.content.size(), 64 * kMiB);
  EXPECT_TRUE(sink.content.substr(32 * kMiB, data.size()) == data);
  EXPECT_LE(sink.data_bytes, kMiB);
}

TEST_F(FileSourceTest, FromAnOffset) {
  const std::string content = RandomBytes(2 * kMiB, 1);
  WriteAll(path_, content);
  Collect first;
  ASSERT_EQ(Read(first).failure, Failure::kNone);
  for (uint64_t offset : {uint64_t{1}, kMiB, 2 * kMiB - 1, 2 * kMiB}) {
    Collect sink;
    EXPECT_EQ(Read(sink, offset, first.head.validator).failure, Failure::kNone);
    EXPECT_EQ(sink.head.offset, offset);
    EXPECT_TRUE(sink.content.substr(offset) == content.substr(offset));
  }
  for (const auto& [offset, validator] :
       std::vector<std::pair<uint64_t, std::string>>{
           {kMiB, "other"}, {kMiB, ""}, {2 * kMiB + 1, first.head.validator}}) {
    Collect sink;
    EXPECT_EQ(Read(sink, offset, validator).failure, Failure::kNone);
    EXPECT_EQ(sink.head.offset, 0u);
    EXPECT_TRUE(sink.content == content);
  }
  test::FlipByte(path_, 3);
  Collect changed;
  EXPECT_EQ(Read(changed, kMiB, first.head.validator).failure, Failure::kNone);
  EXPECT_EQ(changed.head.offset, 0u);
}

TEST_F(FileSourceTest, ChangedWhileRead) {
  WriteAll(path_, RandomBytes(4 * kMiB, 1));
  Collect sink;
  bool once = false;
  sink.on_data = [&] {
    if (!std::exchange(once, true)) test::FlipByte(path_, 3 * kMiB);
  };
  const Outcome outcome = Read(sink);
  EXPECT_EQ(outcome.failure, Failure::kTransient);
  EXPECT_EQ(outcome.status.code(), Code::kAborted);
}

TEST_F(FileSourceTest, CutOffWhileRead) {
  WriteAll(path_, RandomBytes(4 * kMiB, 1));
  Collect sink;
  sink.on_data = [&] { std::filesystem::resize_file(path_, 512); };
  EXPECT_EQ(Read(sink).failure, Failure::kTransient);
}

TEST_F(FileSourceTest, TheSinksFailureComesBack) {
  WriteAll(path_, RandomBytes(kMiB, 1));
  Collect head;
  head.head_answer = base::DataLossError("no");
  Outcome outcome = Read(head);
  EXPECT_EQ(outcome.failure, Failure::kPermanent);
  EXPECT_EQ(outcome.status, head.head_answer);
  EXPECT_EQ(head.content, "");
  Collect data;
  data.data_answer = base::ResourceExhaustedError("full");
  outcome = Read(data);
  EXPECT_EQ(outcome.failure, Failure::kPermanent);
  EXPECT_EQ(outcome.status, data.data_answer);
}

TEST_F(FileSourceTest, Stopped) {
  WriteAll(path_, RandomBytes(4 * kMiB, 1));
  Collect sink;
  std::stop_source stop;
  sink.on_data = [&] { stop.request_stop(); };
  EXPECT_EQ(Read(sink, 0, "", stop.get_token()).failure, Failure::kCancelled);
  EXPECT_LT(sink.content.size(), 4 * kMiB);
}

TEST_F(FileSourceTest, NoRegularFile) {
  Collect sink;
  EXPECT_EQ(Read(sink).status.code(), Code::kNotFound);
  std::filesystem::create_directory(path_);
  EXPECT_EQ(Read(sink).failure, Failure::kPermanent);
  std::filesystem::remove(path_);
  ASSERT_EQ(::mkfifo(path_.c_str(), 0600), 0);
  EXPECT_EQ(Read(sink).failure, Failure::kPermanent);
  EXPECT_EQ(sink.heads, 0);
}

TEST_F(FileSourceTest, BelowRootsNoLinkLeadsOut) {
  std::filesystem::create_directories(dir_ / "root/sub");
  WriteAll(dir_ / "secret", "s");
  WriteAll(dir_ / "root/sub/ok", RandomBytes(512, 1));
  std::filesystem::create_symlink(dir_ / "secret", dir_ / "root/link");
  std::filesystem::create_symlink("..", dir_ / "root/up");
  options_ = FileAllowed({dir_ / "root"});
  Collect sink;
  path_ = dir_ / "root/sub/ok";
  EXPECT_EQ(Read(sink).failure, Failure::kNone);
  for (const char* path : {"root/link", "root/up/secret"}) {
    path_ = dir_ / path;
    Collect none;
    const Outcome outcome = Read(none);
    EXPECT_EQ(outcome.failure, Failure::kPermanent) << path;
    EXPECT_EQ(outcome.status.code(), Code::kPermissionDenied) << path;
    EXPECT_EQ(none.heads, 0);
  }
}

TEST(MakeUrlSourceTest, Credentials) {
  TempDir dir;
  Options options;
  const auto code = [&](const std::string& name) {
    return MakeUrlSource("http://x/a", name, options).status().code();
  };
  EXPECT_EQ(code(""), Code::kOk);
  EXPECT_EQ(code("a"), Code::kNotFound) << "no directory is set";
  options.credentials_dir = dir.path();
  EXPECT_EQ(code("a"), Code::kNotFound);
  EXPECT_EQ(code("../a"), Code::kInvalidArgument);
  WriteAll(dir / "a.headers", "# comment\n\nAuthorization: Bearer x\r\n");
  EXPECT_EQ(code("a"), Code::kOk);
  WriteAll(dir / "b.netrc", "machine x login y password z\n");
  EXPECT_EQ(code("b"), Code::kOk);
  WriteAll(dir / "c.headers", "X-Ok: 1\nsecret-without-colon\n");
  const auto bad = MakeUrlSource("http://x/a", "c", options);
  EXPECT_EQ(bad.status().code(), Code::kFailedPrecondition);
  EXPECT_THAT(bad.status().message(), HasSubstr("line 2"));
  EXPECT_THAT(bad.status().message(), ::testing::Not(HasSubstr("secret")));
  std::filesystem::create_symlink(dir / "a.headers", dir / "d.headers");
  EXPECT_EQ(code("d"), Code::kPermissionDenied);
}

}  // namespace
}  // namespace bim::transfer
