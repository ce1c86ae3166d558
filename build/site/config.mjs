// The configuration of VitePress, which build/site.sh copies beside the pages that `site stage` has written.
import { readFileSync } from 'node:fs'
import { defineConfig } from 'vitepress'

const sidebar = JSON.parse(readFileSync(new URL('./sidebar.json', import.meta.url)))

// Anchors as the Git forges make them: pages link to sections in this form.
const slugify = heading => heading.trim().toLowerCase().replace(/[^\p{L}\p{N}_ -]/gu, '').replaceAll(' ', '-')

// A block of commands shows output too. Its copy button copies the commands, without the prompt.
const commandsOnly = {
  name: 'commands-only',
  code(node) {
    if (this.options.lang !== 'console') return
    let open = false // the line goes on with a command of the line before
    const lines = []
    for (const child of node.children) {
      if (child.tagName !== 'span') {
        const line = lines.at(-1)
        if (line) line.children.push(child)
        continue
      }
      lines.push(child)
      const text = textOf(child)
      if (text.startsWith('# ')) cutPrompt(child)
      else if (!open) child.properties.class += ' vp-copy-ignore output'
      open = (open || text.startsWith('# ')) && text.endsWith('\\')
    }
    node.children = lines
  },
}

function textOf(node) {
  return node.type === 'text' ? node.value : node.children.map(textOf).join('')
}

// cutPrompt gives the prompt of a line a span of its own.
function cutPrompt(line) {
  let left = 2
  for (const part of line.children) {
    const text = part.children?.[0]
    if (text?.type !== 'text') return
    const cut = Math.min(left, text.value.length)
    text.value = text.value.slice(cut)
    left -= cut
    if (left === 0) break
  }
  line.children.unshift({
    type: 'element', tagName: 'span', properties: { class: 'vp-copy-ignore prompt' }, children: [{ type: 'text', value: '# ' }],
  })
}

export default defineConfig({
  title: 'ImageAPI',
  description: 'System images for the nodes of a cluster, made and removed over REST',
  lang: 'en',
  base: '/imageapi/v1/docs/',
  cleanUrls: true,
  metaChunk: true,
  head: [['link', { rel: 'icon', href: 'data:,' }]],
  lastUpdated: false,
  ignoreDeadLinks: false,
  markdown: {
    anchor: { slugify },
    toc: { slugify },
    codeTransformers: [commandsOnly],
    lineNumbers: false,
  },
  themeConfig: {
    sidebar,
    outline: { level: [2, 3], label: 'On this page' },
    search: {
      provider: 'local',
      options: {
        detailedView: true,
        miniSearch: {
          searchOptions: {
            fuzzy: 0.1,
            prefix: true,
            boost: { title: 8, titles: 3, text: 1 },
          },
        },
      },
    },
    nav: [{ text: 'Guides', link: '/' }, { text: 'API reference', link: '/api/', target: '_self' }],
    docFooter: { prev: 'Previous', next: 'Next' },
  },
})
