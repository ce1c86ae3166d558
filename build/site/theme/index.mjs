// The theme of VitePress without its fonts: the site asks no other host, and a page is small.
import DefaultTheme from 'vitepress/theme-without-fonts'
import './style.css'

export default DefaultTheme
