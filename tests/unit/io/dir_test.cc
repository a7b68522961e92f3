#include "pkg/io/dir.h"

#include <dirent.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "tests/unit/bytes.h"

namespace bim::io {
namespace {

namespace fs = std::filesystem;
using base::Code;

class DirTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = fs::temp_directory_path() / "bim-test-XXXXXX";
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    top_ = pattern;
    fs::create_directories(top_ / "root/sub");
    Write("victim", "secret");
    Write("root/sub/file", "content");
    auto dir = Dir::Open(top_ / "root");
    ASSERT_TRUE(dir.ok());
    dir_ = *std::move(dir);
  }
  void TearDown() override { fs::remove_all(top_); }
  void Write(const std::string& path, std::string_view text) {
    std::ofstream(top_ / path, std::ios::binary) << text;
  }
  std::string Read(const std::string& path) {
    return test::ReadAll(top_ / path);
  }
  mode_t Mode(const std::string& path) {
    struct stat st = {};
    EXPECT_EQ(::stat((top_ / path).c_str(), &st), 0);
    return st.st_mode & 07777;
  }

  fs::path top_;
  Dir dir_;
};

TEST_F(DirTest, Open) {
  EXPECT_TRUE(dir_.valid());
  EXPECT_EQ(dir_.path(), top_ / "root");
  EXPECT_FALSE(Dir().valid());
  EXPECT_EQ(Dir::Open(top_ / "nowhere").status().code(), Code::kNotFound);
  EXPECT_EQ(Dir::Open(top_ / "victim").status().code(), Code::kNotFound);
  // Links in the operator's path are followed.
  fs::create_symlink("root", top_ / "link");
  EXPECT_TRUE(Dir::Open(top_ / "link").ok());
}

TEST_F(DirTest, NothingLeadsOut) {
  fs::create_symlink(top_ / "victim", top_ / "root/link");
  fs::create_symlink("..", top_ / "root/up");
  fs::create_symlink("sub/file", top_ / "root/inner");
  fs::create_directory_symlink("sub", top_ / "root/innerdir");
  for (const std::string& path :
       {std::string("../victim"), std::string("sub/../../victim"),
        std::string("link"), std::string("up/victim"), std::string("inner"),
        std::string("innerdir/file"), std::string(top_ / "victim"),
        std::string("/etc/passwd"), std::string("..")}) {
    EXPECT_EQ(dir_.OpenFile(path, O_RDONLY).status().code(),
              Code::kPermissionDenied)
        << path;
    EXPECT_EQ(dir_.Stat(path).status().code(), Code::kPermissionDenied) << path;
    EXPECT_EQ(dir_.ReadFile(path, 100).status().code(), Code::kPermissionDenied)
        << path;
  }
  for (const char* path : {"../x", "up/x", "innerdir/x", "/tmp/x"}) {
    EXPECT_FALSE(dir_.OpenFile(path, O_WRONLY | O_CREAT).ok()) << path;
    EXPECT_FALSE(dir_.MakeDir(path, 0755).ok()) << path;
    EXPECT_FALSE(dir_.ReplaceFile(path, "x").ok()) << path;
    EXPECT_FALSE(dir_.Rename("sub/file", path).ok()) << path;
    EXPECT_FALSE(dir_.RenameNew("sub/file", path).ok()) << path;
  }
  for (const char* path : {"../victim", "up/victim", "innerdir/file"}) {
    EXPECT_EQ(dir_.RemoveFile(path).code(), Code::kPermissionDenied) << path;
    EXPECT_FALSE(dir_.Rename(path, "stolen").ok()) << path;
  }
  EXPECT_FALSE(dir_.OpenDir("up").ok());
  EXPECT_FALSE(dir_.OpenDir("innerdir").ok());
  EXPECT_FALSE(dir_.RemoveDir("../root").ok());
  EXPECT_FALSE(dir_.MakeDir("innerdir", 0755).ok()) << "a link is no directory";
  EXPECT_EQ(Read("victim"), "secret");
  EXPECT_EQ(Read("root/sub/file"), "content");
  EXPECT_FALSE(fs::exists(top_ / "x"));
  EXPECT_FALSE(fs::exists(top_ / "root/sub/x"));
}

TEST_F(DirTest, LinksThemselvesAreRemovedAndReplaced) {
  fs::create_symlink(top_ / "victim", top_ / "root/link");
  EXPECT_TRUE(dir_.RemoveFile("link").ok());
  EXPECT_FALSE(fs::exists(fs::symlink_status(top_ / "root/link")));
  fs::create_symlink(top_ / "victim", top_ / "root/link");
  fs::create_symlink(top_ / "victim", top_ / "root/link.new");
  EXPECT_TRUE(dir_.ReplaceFile("link", "new").ok());
  EXPECT_TRUE(fs::is_regular_file(fs::symlink_status(top_ / "root/link")));
  EXPECT_EQ(Read("root/link"), "new");
  EXPECT_EQ(Read("victim"), "secret");
}

TEST_F(DirTest, FilesAndModes) {
  const mode_t before = ::umask(0);
  EXPECT_TRUE(dir_.OpenFile("new", O_WRONLY | O_CREAT | O_EXCL, 0640).ok());
  EXPECT_EQ(Mode("root/new"), 0640u);
  EXPECT_EQ(dir_.OpenFile("new", O_WRONLY | O_CREAT | O_EXCL).status().code(),
            Code::kAlreadyExists);
  for (mode_t mode : {0600, 0644, 0640}) {
    EXPECT_TRUE(dir_.ReplaceFile("r", "x", mode).ok());
    EXPECT_EQ(Mode("root/r"), mode);
  }
  ::umask(077);
  EXPECT_TRUE(dir_.MakeDir("d", 0755).ok());
  EXPECT_EQ(Mode("root/d"), 0755u) << "whatever the umask";
  EXPECT_TRUE(dir_.MakeDir("d", 0700).ok()) << "fine when it is there";
  ::umask(before);
  auto fd = dir_.OpenFile("new", O_RDONLY);
  ASSERT_TRUE(fd.ok());
  EXPECT_NE(::fcntl(fd->get(), F_GETFD) & FD_CLOEXEC, 0);
  EXPECT_EQ(dir_.OpenFile("none", O_RDONLY).status().code(), Code::kNotFound);
  EXPECT_EQ(dir_.MakeDir("none/d", 0755).code(), Code::kNotFound);
  EXPECT_FALSE(dir_.MakeDir("new", 0755).ok()) << "a file is no directory";
}

TEST_F(DirTest, Stat) {
  EXPECT_EQ(dir_.Stat("sub/file")->st_size, 7);
  EXPECT_TRUE(S_ISDIR(dir_.Stat("sub")->st_mode));
  EXPECT_EQ(dir_.Stat("none").status().code(), Code::kNotFound);
  EXPECT_EQ(dir_.Stat("sub/file/x").status().code(), Code::kNotFound);
}

TEST_F(DirTest, Remove) {
  EXPECT_TRUE(dir_.RemoveFile("none").ok());
  EXPECT_TRUE(dir_.RemoveFile("none/none").ok());
  EXPECT_TRUE(dir_.RemoveDir("none").ok());
  EXPECT_TRUE(dir_.RemoveDir("none/none").ok());
  EXPECT_FALSE(dir_.RemoveFile("sub").ok()) << "a directory";
  EXPECT_FALSE(dir_.RemoveDir("sub").ok()) << "not empty";
  EXPECT_TRUE(dir_.RemoveFile("sub/file").ok());
  EXPECT_TRUE(dir_.RemoveDir("sub").ok());
  EXPECT_FALSE(fs::exists(top_ / "root/sub"));
}

TEST_F(DirTest, Renames) {
  Write("root/b", "b");
  EXPECT_EQ(dir_.RenameNew("sub/file", "b").code(), Code::kAlreadyExists);
  EXPECT_EQ(Read("root/b"), "b");
  EXPECT_TRUE(dir_.RenameNew("sub/file", "c").ok());
  EXPECT_TRUE(dir_.Rename("c", "b").ok());
  EXPECT_EQ(Read("root/b"), "content");
  EXPECT_EQ(dir_.Rename("none", "d").code(), Code::kNotFound);
}

TEST_F(DirTest, List) {
  fs::create_symlink("x", top_ / "root/link");
  Write("root/a", "");
  for (int round = 0; round < 2; ++round) {
    std::set<std::pair<std::string, int>> seen;
    EXPECT_TRUE(dir_.List([&](std::string_view name, unsigned char type) {
                      EXPECT_TRUE(seen.emplace(name, type).second);
                      return true;
                    })
                    .ok());
    EXPECT_EQ(seen, (std::set<std::pair<std::string, int>>{
                        {"a", DT_REG}, {"link", DT_LNK}, {"sub", DT_DIR}}))
        << "again the same";
  }
  int count = 0;
  EXPECT_TRUE(dir_.List([&](std::string_view, unsigned char) {
                    ++count;
                    return false;
                  })
                  .ok());
  EXPECT_EQ(count, 1);
}

TEST_F(DirTest, ReadFile) {
  EXPECT_EQ(*dir_.ReadFile("sub/file", 7), "content");
  EXPECT_EQ(dir_.ReadFile("sub/file", 6).status().code(), Code::kOutOfRange);
  Write("root/empty", "");
  EXPECT_EQ(*dir_.ReadFile("empty", 0), "");
  EXPECT_FALSE(dir_.ReadFile("sub", 100).ok());
  ASSERT_EQ(::mkfifo((top_ / "root/fifo").c_str(), 0600), 0);
  EXPECT_EQ(dir_.ReadFile("fifo", 100).status().code(),
            Code::kFailedPrecondition)
      << "and does not wait for a writer";
}

TEST_F(DirTest, ReplaceFile) {
  EXPECT_TRUE(dir_.ReplaceFile("sub/file", "second").ok());
  EXPECT_EQ(Read("root/sub/file"), "second");
  EXPECT_TRUE(dir_.ReplaceFile("sub/file", "").ok());
  EXPECT_EQ(Read("root/sub/file"), "");
  // What an earlier crash left is in nobody's way.
  Write("root/sub/file.new", "half");
  EXPECT_TRUE(dir_.ReplaceFile("sub/file", "third").ok());
  EXPECT_EQ(Read("root/sub/file"), "third");
  EXPECT_FALSE(fs::exists(top_ / "root/sub/file.new"));
  EXPECT_EQ(dir_.ReplaceFile("none/file", "x").code(), Code::kNotFound);
  // One that is open keeps its content.
  auto fd = dir_.OpenFile("sub/file", O_RDONLY);
  EXPECT_TRUE(dir_.ReplaceFile("sub/file", "fourth").ok());
  char buffer[8] = {};
  EXPECT_EQ(*PreadFull(fd->get(), buffer, 8, 0, "x"), 5u);
  EXPECT_STREQ(buffer, "third");
}

TEST_F(DirTest, ReplaceFileThatCannotBeLeavesNothing) {
  fs::create_directory(top_ / "root/dir");
  EXPECT_FALSE(dir_.ReplaceFile("dir", "x").ok());
  EXPECT_FALSE(fs::exists(top_ / "root/dir.new"));
}

TEST_F(DirTest, PreadAndPwrite) {
  auto fd = dir_.OpenFile("rw", O_RDWR | O_CREAT);
  ASSERT_TRUE(fd.ok());
  EXPECT_TRUE(PwriteAll(fd->get(), "hello", 3, "x").ok());
  EXPECT_TRUE(PwriteAll(fd->get(), "", 100, "x").ok());
  char buffer[100];
  EXPECT_EQ(*PreadFull(fd->get(), buffer, 100, 0, "x"), 8u);
  EXPECT_EQ(std::string(buffer + 3, 5), "hello");
  EXPECT_EQ(*PreadFull(fd->get(), buffer, 100, 8, "x"), 0u);
  auto read_only = dir_.OpenFile("rw", O_RDONLY);
  EXPECT_FALSE(PwriteAll(read_only->get(), "x", 0, "x").ok());
  EXPECT_TRUE(dir_.Sync().ok());
}

}  // namespace
}  // namespace bim::io
